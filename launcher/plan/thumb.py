"""The rule of thumb by which models are usually cut, to be held against what was computed."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.layout import cut_words
from launcher.plan.search import Search
from launcher.plan.types import Cut

__all__ = ["RuleOfThumb", "difference", "rule_of_thumb"]

_GB = 10**9
_ALIKE = 0.005
# Weights below so many GB, what is said of them, and the cuts that it stands for. It has GPUs of
# 80 GB in mind, eight of them joined by NVLink.
_RULES: tuple[tuple[float, str, tuple[Cut, ...]], ...] = (
    (20, "one GPU", (Cut(),)),
    (80, "tp 2 or 4", (Cut(tp=2), Cut(tp=4))),
    (320, "tp 4 or 8 with NVLink", (Cut(tp=4), Cut(tp=8))),
    (float("inf"), "tp 8 x pp 2", (Cut(tp=8, pp=2),)),
)


@dataclass(frozen=True, slots=True)
class RuleOfThumb:
    """What the rule says of some weights: in words, and the cuts that it means."""

    words: str
    cuts: tuple[Cut, ...]


def rule_of_thumb(weight_bytes: int) -> RuleOfThumb:
    """How a model with so many bytes of weights is usually cut.

    >>> rule_of_thumb(141 * 10**9).words
    'tp 4 or 8 with NVLink'
    """
    words, cuts = next((w, c) for below, w, c in _RULES if weight_bytes < below * _GB)
    return RuleOfThumb(words, cuts)


def difference(rule: RuleOfThumb, found: Search) -> str:
    """How what was chosen differs from the rule, and why."""
    chosen = found.chosen
    if chosen is None:
        return "nothing fits here, whatever the rule"
    if any(_same(cut, chosen.cut) for cut in rule.cuts):
        return "as chosen"
    if found.question.cut is not None:
        return "not compared: the job file states its sizes"
    return "; ".join(_verdict(cut, found) for cut in rule.cuts)


def _verdict(cut: Cut, found: Search) -> str:
    name = cut_words(cut)
    kept = next((c for c in found.kept if _same(c.cut, cut)), None)
    if kept is None:
        wrong = next((r for r in found.rejected if _same(r.cut, cut)), None)
        return f"{name}: {wrong.reason}" if wrong else f"{name} is no cut that suits these nodes"
    best, other = found.kept[0].tokens_s_gpu, kept.tokens_s_gpu
    if best is None or other is None:
        return f"{name} takes more GPUs" if kept.gpus > found.kept[0].gpus else f"{name} fits too"
    share = other / best - 1
    if share > _ALIKE:
        return f"{name} promises {share:.0%} more for each GPU, which its risks outweigh"
    if share > -_ALIKE:
        return f"{name} gives as many tokens for each GPU"
    return f"{name} gives {-share:.0%} fewer tokens for each GPU"


def _same(one: Cut, other: Cut) -> bool:
    return (one.tp, one.pp) == (other.tp, other.pp)
