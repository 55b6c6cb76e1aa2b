"""In the job: one replica over its share of the units."""
