"""``python -m launcher`` is ``hpc-llm``."""

from launcher.cli import main

main(prog_name="hpc-llm")
