"""What users write: job and site files, typed, strict, with line and column."""
