"""What is checked on every node of a replica before its weights are loaded."""
