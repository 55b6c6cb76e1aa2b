"""What `gpu_end_to_end.py` has measured, in lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["lines_of"]


def added_s(marks: Mapping[str, float]) -> str:
    before, after = marks["engine"], marks["first row"] - marks["ready"]
    return (
        f"{before:.2f} s to the engine's import + {after:.3f} s from ready to the first row = "
        f"{before + after:.2f} s; the engine took {marks['ready'] - before:.1f} s"
    )


def lines_of(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """A part as text."""
    if name == "same" and "left_out" not in found:
        for cut, result in found.items():
            yield from lines_of(f"{name} {cut}", result)
    elif name == "start" and "left_out" not in found:
        for engine, starts in found.items():
            yield from (f"start {engine}: {added_s(m)}" for m in starts if "first row" in m)
    else:
        yield from _rates(name, found)
        for turn in found.get("turns", []):
            yield from _turn(turn)
        if "ratio" in found:
            yield f"{name} ratio: {found['ratio']:.3f}"
        if "whole" in found:
            yield from _rates(f"{name} whole process", found["whole"])
            yield f"{name} whole process ratio: {found['whole'].get('ratio', 0):.3f}"
        if found.get("left_out"):
            yield f"{name} left out: {found['left_out']}"
        yield from (f"{name}: {json.dumps(note)[:300]}" for note in found.get("notes", []))


def _rates(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("direct", "runner", "run-batch", "script", "one", "two"):
        if kind in found:
            low, high = found[kind]["range"]
            yield (
                f"{name} {kind}: {found[kind]['median']:,.0f} tokens/s "
                f"({low:,.0f} to {high:,.0f}, {found[kind]['turns']} turns)"
            )


def _turn(turn: Mapping[str, Any]) -> Iterator[str]:
    seen = ", ".join(
        f"GPU {g['gpu']} {g['utilisation_median']:.0f} % {g['memory_most_mib']:.0f} MiB"
        for g in turn.get("gpus", [])
    )
    late = f", loop late p99 {turn['stall_p99_ms']:.1f} ms" if "stall_p99_ms" in turn else ""
    yield (
        f"    {turn.get('kind', turn.get('turn'))}: {turn['rows']} rows, "
        f"{turn['ended'] - turn['started']:.1f} s, steady {turn.get('tokens_per_s', 0):,.0f}, "
        f"whole {turn['whole_tokens_per_s']:,.0f} tokens/s{late}; {seen}"
    )
    if "first row" in turn.get("marks", {}):
        yield f"        {added_s(turn['marks'])}"
    if "answering_s" in turn:
        yield (
            f"        {turn['answering_s']:.1f} s from ready to the whole output, "
            f"{turn['answering_tokens_per_s']:,.0f} tokens/s"
        )
    if "tail" in turn:
        last = turn["tail"]
        busy = ", ".join(f"GPU {g['gpu']} {g['utilisation_mean']:.0f} %" for g in last["gpus"])
        yield (
            f"        tail: the last tenth of the rows took {last['seconds']:.1f} s, "
            f"{last['share']:.0%} of the time from ready to the whole output; busy (mean): {busy}"
        )
