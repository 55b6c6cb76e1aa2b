"""hpc-llm: offline batch inference of large models on Slurm clusters."""

__version__ = "0.1.0"
