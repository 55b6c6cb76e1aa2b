"""hpc-llm: offline batch inference of large models on Slurm clusters."""

import sys

__version__ = "0.1.0"

# In words that every Python understands: a node's own may be older than this package.
if sys.version_info < (3, 10):  # noqa: UP036 - it may run where it is not installed
    sys.exit(
        "hpc-llm needs Python 3.10 or newer, and %s is %d.%d: set runtime.python, modules or venv"  # noqa: UP031 - as above
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
