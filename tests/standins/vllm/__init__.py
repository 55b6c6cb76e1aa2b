"""A stand-in for vLLM: the part of its API that the engine vllm uses, without GPUs.

Names, signatures, defaults and error texts are those of vLLM 0.24.0, by the file that each module
here is named after; `test_vllm_contract` compares them with a real one where there is one.
What it does beyond, and how it is to fail, stands beside the checkpoint's ``config.json``, in
``standin.cfg``; see `core`.
"""

__version__ = "0.24.0"
