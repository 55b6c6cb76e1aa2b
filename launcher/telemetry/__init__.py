"""What a run tells about itself while it goes: lines in ``metrics/``, read by ``status``."""
