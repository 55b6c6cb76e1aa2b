"""A stand-in for TensorRT-LLM 1.2.1, as far as offline inference over MPI ranks touches it.

Nothing here computes: it answers with the ids of its prompt (see `engine`) over real MPI ranks.
Every literal was read in NVIDIA/TensorRT-LLM, in the file and at the commit that its place names;
tests/trtllm_standin.py says how a checkpoint makes it fail.
"""

from __future__ import annotations

import sys

from .llmapi.llm import LLM, RequestOutput
from .sampling_params import SamplingParams
from .version import __version__

__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

# A line of every process, in the log of issue 8961.
sys.stdout.write(f"[TensorRT-LLM] TensorRT-LLM version: {__version__}\n")
sys.stdout.flush()
