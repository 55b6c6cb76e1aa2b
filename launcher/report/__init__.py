"""What a run has produced: read and verified, merged into files, and what proves it."""
