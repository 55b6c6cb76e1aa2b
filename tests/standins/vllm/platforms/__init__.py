"""As ``vllm/platforms/interface.py`` of 0.24.0; ``STANDIN_DEVICE`` names the device."""

from __future__ import annotations

import os


class Platform:
    def __init__(self) -> None:
        self.device_type = os.environ.get("STANDIN_DEVICE", "cuda")

    def is_cuda_alike(self) -> bool:
        return self.device_type == "cuda"

    def is_xpu(self) -> bool:
        return self.device_type == "xpu"


current_platform = Platform()
