"""Every way to cut a model over a machine that is worth a look, and which of them to take.

Cuts inside a node are tried first, in one stage or several. Over nodes the tensor-parallel group
is the largest that NVLink joins, so that there are as few stages as can be. What
`launcher.plan.checks` refuses is never built, what does not fit is rejected with the figures, and
what remains is ranked by output tokens a second for each GPU that is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from launcher.plan.candidates import Candidate, Question, Rejected, Trial
from launcher.plan.capabilities import ENGINES
from launcher.plan.layout import cut_words
from launcher.plan.types import Cut

__all__ = ["TIE", "Candidate", "Question", "Rejected", "Search", "search"]

TIE = 0.1
"""Cuts nearer than this to the best are alike. On two H200 the cost model had a pipeline of two 4 %
ahead of tensor parallelism, and in turns on the same machine it was 6 % behind it."""

_TIGHT = 1 / 8
"""A KV cache smaller than this part of a GPU is for rows as short as the sample's only: among cuts
that are alike those with a larger one are taken."""

_OVER_NODES = 0.8
"""What a GPU of a replica over nodes counts for: such a replica waits for all its nodes and is lost
with any of them. One that fits a node leaves it for a clear gain only."""

_THIN = 1024
"""Experts whose slices would be narrower than this are kept whole, by ``ep``. A choice: nothing
here was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The answer to a `Question`.

    Attributes
    ----------
    kept
        All that fit: the chosen one, then the others as they rank.
    why
        What made the choice, in words.
    """

    question: Question
    kept: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    why: str

    @property
    def chosen(self) -> Candidate | None:
        """None where nothing fits."""
        return self.kept[0] if self.kept else None


def search(question: Question) -> Search:
    """Cut the model of ``question`` over its machine, or prove the cut that it states.

    Raises
    ------
    ValueError
        The sizes of the model's tensors are not known, so that nothing can be proved.
    """
    trial = Trial(question)
    if question.cut is not None:
        if trial.allows(question.cut):
            trial.test(question.cut)
    else:
        pairs = [(tp, ep) for tp, ep in _pairs(question) if trial.allows(Cut(tp=tp, ep=ep))]
        for tp, ep in pairs:
            for pp in _stages_in_node(question, tp):
                trial.test(Cut(tp=tp, pp=pp, ep=ep))
        for tp, ep in _widest(question, pairs):
            _lengthen(trial, tp, ep)
    kept, why = _ranked(question, trial.kept)
    return Search(question=question, kept=tuple(kept), rejected=tuple(trial.rejected), why=why)


# --- which cuts


def _pairs(question: Question) -> Iterator[tuple[int, int]]:
    """Sizes of ``tp`` and ``ep`` that the model or the node suggests."""
    slots = question.node.slots
    for tp in range(1, slots + 1 if question.can("tp") else 2):
        if slots % tp == 0 or question.shape.heads % tp == 0:
            yield from ((tp, ep) for ep in _experts_over(question, tp))


def _experts_over(question: Question, tp: int) -> list[int]:
    if tp == 1 or question.shape.experts is None or not question.can("ep"):
        return [1]
    if ENGINES[question.engine].ep_is_tp:
        return [1, tp]
    return [ep for ep in range(1, tp + 1) if tp % ep == 0]


def _stages_in_node(question: Question, tp: int) -> list[int]:
    """Lengths of pipelines inside a node that leave none of its GPUs over."""
    slots = question.node.slots
    if not question.can("pp"):
        return [1]
    most = min(slots // tp, question.shape.layers)
    return [pp for pp in range(1, most + 1) if slots % (tp * pp) == 0 and _asked(question, pp)]


def _asked(question: Question, pp: int) -> bool:
    layers = question.options.get("pp_partition")
    return not isinstance(layers, list) or len(layers) == pp


def _widest(question: Question, pairs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """For each way to spread experts the ``tp`` that leaves the fewest GPUs of a node over."""
    slots = question.node.slots
    whole = ENGINES[question.engine].ep_is_tp

    def spread(pair: tuple[int, int]) -> int:
        return min(pair[1], 2) if whole else pair[1]

    for way in dict.fromkeys(map(spread, pairs)):
        yield max((p for p in pairs if spread(p) == way), key=lambda p: (-(slots % p[0]), p[0]))


# Layers that divide evenly make a longer pipeline better than the one before it.
_PATIENCE = 2


def _lengthen(trial: Trial, tp: int, ep: int) -> None:
    """Pipelines over more and more nodes, until more of them are no gain."""
    question = trial.question
    stages = question.node.slots // tp
    most = min(question.most_nodes or question.shape.layers, question.shape.layers // stages)
    best, worse = 0.0, 0
    lengths = [stages * n for n in range(2, most + 1)] if question.can("pp") else []
    for pp in filter(lambda length: _asked(question, length), lengths):
        found = trial.test(Cut(tp=tp, pp=pp, ep=ep))
        if found is None:
            continue
        value = found.tokens_s_gpu or 0.0
        worse = worse + 1 if found.cost is not None and value <= best else 0
        best = max(best, value)
        if worse == _PATIENCE or (found.cost is None and not _tight(found)):
            return


# --- which one


def _ranked(question: Question, kept: list[Candidate]) -> tuple[list[Candidate], str]:
    """The chosen one first, and why; those whose speed is not known come last."""
    if not kept:
        return [], "nothing fits"
    usual = _usual_experts(question, kept)
    known = sorted((c for c in usual if c.cost is not None), key=_worth, reverse=True)
    if known:
        likely = [c for c in known if not _needless(c, known)]
        near = [c for c in likely if _worth(c) >= (1 - TIE) * _worth(likely[0])]
        chosen = min(near, key=_plainness)
        why = _reason(chosen, likely[0], known)
    else:
        chosen = min(usual, key=_plainness)
        why = f"the fewest GPUs that hold it with room for rows: {chosen.unknown}"
    if question.cut is not None:
        why = "stated in the job file"
    ordered = (chosen, *known, *sorted(usual, key=_plainness), *kept)
    return list({candidate.cut: candidate for candidate in ordered}.values()), why


def _usual_experts(question: Question, kept: list[Candidate]) -> list[Candidate]:
    """Of cuts that differ in how experts are spread alone, one.

    Its speed does not tell which: what thin slices cost is not in the model.
    """
    experts = question.shape.experts
    if experts is None:
        return kept

    def plain(cut: Cut) -> tuple[bool, bool, int]:
        width = experts.intermediate_size * cut.ep / cut.tp
        return width < _THIN, cut.ep not in (1, cut.tp), cut.ep

    ordered = sorted(kept, key=lambda c: (c.cut.tp, c.cut.pp, plain(c.cut)))
    return [next(group) for _, group in groupby(ordered, key=lambda c: (c.cut.tp, c.cut.pp))]


def _worth(candidate: Candidate) -> float:
    return (candidate.tokens_s_gpu or 0.0) * (1.0 if candidate.nodes == 1 else _OVER_NODES)


def _needless(candidate: Candidate, kept: list[Candidate]) -> bool:
    """Whether a wider TP group does with as many GPUs of a node as these stages.

    The model is fond of such pipelines, most where the cache cannot be cut (latent attention);
    engines are rarely run so, and where they were compared here tensor parallelism was ahead.
    """
    cut = candidate.cut
    return candidate.nodes == 1 and any(
        k.nodes == 1 and k.cut.ranks == cut.ranks and k.cut.pp < cut.pp for k in kept
    )


def _tight(candidate: Candidate) -> bool:
    return any(stage.kv_bytes < _TIGHT * stage.capacity for stage in candidate.fit.stages)


def _plainness(candidate: Candidate) -> tuple[float, ...]:
    """What is taken among cuts that are alike: the least first."""
    cut = candidate.cut
    return _tight(candidate), candidate.gpus, cut.ranks, cut.pp, -_worth(candidate)


def _reason(chosen: Candidate, best: Candidate, known: list[Candidate]) -> str:
    """Why ``chosen`` although ``best`` is worth more, and another may be faster than both."""
    fastest = max(known, key=lambda c: c.tokens_s_gpu or 0.0)
    why = "the most output tokens a second for each GPU"
    if chosen is not best:
        behind = 1 - _worth(chosen) / _worth(best)
        why = f"within {max(behind, 0.01):.0%} of {cut_words(best.cut)}, {_virtue(chosen, best)}"
    elif fastest is not chosen:
        why += " of the usual cuts"
    if fastest is chosen or fastest is best:
        return why
    more = (fastest.tokens_s_gpu or 0.0) / (chosen.tokens_s_gpu or 1.0) - 1
    risk = "a pipeline inside a node"
    if fastest.nodes > 1:
        risk = f"it waits for {fastest.nodes} nodes"
    return f"{why}; {cut_words(fastest.cut)} ({more:.0%} more) is passed over: {risk}"


def _virtue(chosen: Candidate, other: Candidate) -> str:
    """The first thing in which `_plainness` tells them apart."""
    if _tight(other) and not _tight(chosen):
        return "whose KV cache has hardly room for longer rows"
    if (chosen.gpus, chosen.cut.ranks) < (other.gpus, other.cut.ranks):
        return "by fewer GPUs"
    return "by a shorter pipeline"
