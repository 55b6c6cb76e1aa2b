"""Captures of what tools printed, and ibstat's output for ports that a test makes up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CAPTURES = Path(__file__).parent / "fixtures" / "captures"


def capture(name: str) -> str:
    """The capture without the lines that say where it is from."""
    lines = (CAPTURES / name).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# "))


def ibstat_of(names: Iterable[str], *, rate: int = 400, layer: str = "InfiniBand") -> str:
    """One port on each adapter, Active and LinkUp."""
    return "".join(
        f"CA '{name}'\n\tCA type: MT4129\n\tNumber of ports: 1\n\tPort 1:\n"
        f"\t\tState: Active\n\t\tPhysical state: LinkUp\n\t\tRate: {rate}\n"
        f"\t\tLink layer: {layer}\n"
        for name in names
    )
