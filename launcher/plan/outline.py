"""What was computed of a plan, as text and as data: memory, candidates, the rule of thumb."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from typing import Any

from launcher.models.weights import weight_bytes
from launcher.plan.layout import cut_words
from launcher.plan.memory import StageMemory
from launcher.plan.search import Candidate, Rejected, Search
from launcher.plan.thumb import difference, rule_of_thumb
from launcher.units import format_bytes

__all__ = ["candidate_rows", "memory_bars", "rejected_rows", "search_data", "thumb_rows"]

_BAR = 60
_SHOWN, _REJECTED_SHOWN = 5, 4


def memory_bars(found: Search) -> str:
    """A bar for the GPUs of each pipeline stage; stages that are alike share one."""
    chosen = found.chosen
    if chosen is None:
        return ""
    stages = list(enumerate(chosen.fit.stages))
    lines = [f"memory of a GPU: {format_bytes(stages[0][1].capacity)}"]
    for _, alike in groupby(stages, key=lambda entry: _figures(entry[1])):
        group = list(alike)
        first, last = group[0][0], group[-1][0]
        name = f"stage {first}" if first == last else f"stages {first}-{last}"
        lines.append(f"{name:12} [{_bar(group[0][1])}]")
        lines.append(f"{'':12}  {_figures(group[0][1])}")
    return "\n".join(lines)


def _parts(stage: StageMemory) -> dict[str, int]:
    return {
        "weights": stage.weights,
        "kv_cache": stage.kv_bytes,
        "activations": stage.activations,
        "reserve": stage.reserve + stage.graphs + stage.outside,
    }


def _figures(stage: StageMemory) -> str:
    parts = _parts(stage)
    words = [f"{name.replace('_', ' ')} {format_bytes(size)}" for name, size in parts.items()]
    tokens = f" ({stage.kv_tokens:,} tokens)" if stage.kv_per_token else ""
    words[1] += tokens
    return ", ".join([*words, f"free {format_bytes(max(0, stage.free))}"])


def _bar(stage: StageMemory) -> str:
    """Its parts by their first letters, each as long as its share; free space is dots."""
    text, filled = "", 0
    for name, size in _parts(stage).items():
        filled += size
        end = min(_BAR, round(_BAR * filled / stage.capacity))
        text += name[0] * (end - len(text))
    return text.ljust(_BAR, ".")


def candidate_rows(found: Search) -> list[tuple[str, ...]]:
    """The chosen cut and the best others, as rows of a table."""
    rows: list[tuple[str, ...]] = [
        ("", "cut", "GPUs", "weights", "KV tokens", "tokens/s a GPU", "limited by"),
    ]
    for index, candidate in enumerate(_distinct(found.kept)[:_SHOWN]):
        rows.append(("->" if index == 0 else "", *_row(candidate)))
    return rows


def rejected_rows(found: Search) -> list[tuple[str, str]]:
    """What came nearest of all that does not fit, and what else cannot be; each with its reason."""
    large = sorted(
        (r for r in found.rejected if r.code == "plan.gpu-memory" and r.cut.ep == 1),
        key=lambda r: (-r.cut.ranks, -r.cut.tp),
    )
    other = [r for r in found.rejected if r.code != "plan.gpu-memory"]
    shown = [*large[:_REJECTED_SHOWN], *other[:_REJECTED_SHOWN]]
    rows = [(f"not {cut_words(r.cut)}", r.reason) for r in shown]
    hidden = len(found.rejected) - len(shown)
    return [*rows, ("", f"… and {hidden} more (--output json)")] if hidden > 0 else rows


def _distinct(kept: tuple[Candidate, ...]) -> list[Candidate]:
    """The first of those that differ in how experts are spread alone."""
    first: dict[tuple[int, int], Candidate] = {}
    for candidate in kept:
        first.setdefault((candidate.cut.tp, candidate.cut.pp), candidate)
    return list(first.values())


def _row(candidate: Candidate) -> tuple[str, ...]:
    fullest = max(candidate.fit.stages, key=lambda stage: stage.weights)
    speed, limit = "not known", candidate.unknown
    if candidate.cost is not None:
        speed = f"{candidate.tokens_s_gpu:,.0f}"
        limit = f"{candidate.cost.limit}; batch by {candidate.cost.batch_limit}"
    return (
        cut_words(candidate.cut),
        f"{candidate.gpus:g}",
        format_bytes(fullest.weights),
        f"{candidate.fit.kv_tokens:,}",
        speed,
        limit,
    )


def thumb_rows(found: Search) -> list[tuple[str, str]]:
    """Why this cut, and what the rule of thumb would have been."""
    weights = weight_bytes(found.question.shape)
    rule = rule_of_thumb(weights)
    return [
        ("chosen for", found.why),
        ("rule of thumb", f"{weights / 1e9:.0f} GB of weights: {rule.words}"),
        ("", difference(rule, found)),
    ]


def search_data(found: Search | None) -> dict[str, Any]:
    """``memory``, ``candidates``, ``rejected`` and ``rule_of_thumb`` of ``plan --output json``.

    ``memory`` is a list by pipeline stage, bytes of one GPU; all are None or empty where nothing
    was computed.
    """
    if found is None:
        return {"memory": None, "candidates": [], "rejected": [], "rule_of_thumb": None}
    rule = rule_of_thumb(weight_bytes(found.question.shape))
    chosen = found.chosen
    return {
        "memory": [_stage_data(s) for s in chosen.fit.stages] if chosen else None,
        "candidates": [_candidate_data(c) for c in found.kept],
        "rejected": [{**_cut_data(r), "code": r.code, "reason": r.reason} for r in found.rejected],
        "rule_of_thumb": {"says": rule.words, "difference": difference(rule, found)},
    }


def _stage_data(stage: StageMemory) -> dict[str, Any]:
    parts = _parts(stage)
    return {
        "layers": stage.layers,
        **parts,
        "total": sum(parts.values()),
        "capacity": stage.capacity,
        "margin": stage.margin,
        "kv_tokens": stage.kv_tokens if stage.kv_per_token else None,
    }


def _candidate_data(candidate: Candidate) -> dict[str, Any]:
    speed = candidate.cost
    return {
        **_cut_data(candidate),
        "nodes": candidate.nodes,
        "gpus": candidate.gpus,
        "options": dict(candidate.sizes),
        "kv_tokens": candidate.fit.kv_tokens,
        "sequences": candidate.fit.sequences,
        "tokens_s_gpu": candidate.tokens_s_gpu,
        "tokens_s": speed.tokens_s if speed else None,
        "tokens_s_range": list(speed.tokens_s_range) if speed else None,
        "limit": speed.limit if speed else None,
        "batch_limit": speed.batch_limit if speed else None,
        "unknown": candidate.unknown or None,
    }


def _cut_data(of: Candidate | Rejected) -> dict[str, int]:
    return dataclasses.asdict(of.cut)
