"""As ``tensorrt_llm/version.py``; STANDIN_TRTLLM_VERSION makes it another."""

from __future__ import annotations

import os

__version__ = os.environ.get("STANDIN_TRTLLM_VERSION", "1.2.1")
