"""Every way to cut a model over a machine that is worth a look, and which of them to take.

Cuts inside a node are tried first, in one stage or several. Over nodes the tensor-parallel group is
the largest that NVLink joins, so that there are as few stages as can be. What `launcher.plan.checks` refuses is never built, what does not fit
is rejected with the figures, and what remains is ranked by output tokens a second for each GPU
that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.models.shapes import ModelShape
from launcher.plan.capabilities import ENGINES
from launcher.plan.checks import check_cut, nvlink_domain
from launcher.plan.cost import Cost, Serving, Workload, cost
from launcher.plan.engine_memory import EngineMemory, cuda_bytes, engine_memory
from launcher.plan.layout import NodeShape, span
from launcher.plan.machine import find_machine
from launcher.plan.memory import Fit, StageMemory, fit
from launcher.plan.trtllm_checks import without_heads
from launcher.plan.types import Cut
from launcher.spec.site import Fabric, Gpus
from launcher.units import format_bytes

__all__ = ["TIE", "Candidate", "Question", "Rejected", "Search", "search"]

TIE = 0.1
"""Cuts nearer than this to the best are alike. On two H200 the cost model had a pipeline of two 4 %
ahead of tensor parallelism, and in turns on the same machine it was 6 % behind it."""

_OVER_NODES = 0.8
"""What a GPU of a replica over nodes counts for: such a replica waits for all its nodes and is lost
with any of them. One that fits a node leaves it for a clear gain only."""

_THIN = 1024
"""Slices of experts that are narrower than this are kept whole (``ep``) among cuts that are alike.
A choice: nothing here was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be cut, over what, for which rows.

    Attributes
    ----------
    options, env
        ``engine_options`` of the job, and the engine's environment.
    gpus, fabric
        Of a node of the partition, and between nodes; ``gpus.memory`` is stated.
    node
        What is used of each node.
    most_nodes
        Of one replica; None where nothing bounds them.
    longest
        Tokens of the longest prompts that are common (the 95th percentile).
    cut
        The one that the job file states; None to look for one.
    """

    shape: ModelShape
    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: Gpus
    fabric: Fabric | None
    node: NodeShape
    most_nodes: int | None
    workload: Workload
    longest: int
    allow: Collection[str] = ()
    cut: Cut | None = None

    @property
    def most_new(self) -> int:
        """Tokens that an answer may have."""
        return round(self.workload.most_new_tokens or self.workload.new_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A cut that fits.

    Attributes
    ----------
    nodes, gpus
        Of one replica; ``gpus`` counts its share of what stays idle on a node.
    sizes
        Options of the engine that were chosen with it.
    cost
        None where it is not known, with the reason in ``unknown``.
    """

    cut: Cut
    nodes: int
    gpus: float
    sizes: Mapping[str, int]
    fit: Fit
    cost: Cost | None
    unknown: str = ""

    @property
    def tokens_s_gpu(self) -> float | None:
        """Output tokens a second for each GPU that is held."""
        return None if self.cost is None else self.cost.tokens_s / self.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A cut that cannot be: the code of a problem, and why in words."""

    cut: Cut
    code: str
    reason: str


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
    engine: EngineMemory
    kept: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    why: str

    @property
    def chosen(self) -> Candidate | None:
        """None where nothing fits."""
        return self.kept[0] if self.kept else None


def search(question: Question) -> Search:
    """Cut the model of ``question`` over its machine.

    Raises
    ------
    ValueError
        The sizes of the model's tensors are not known, so that nothing can be proved.
    """
    trial = _Trial(question)
    if question.cut is not None:
        trial.check(question.cut)
    else:
        pairs = list(_pairs(trial))
        for tp, ep in pairs:
            for pp in _stages_in_node(question, tp):
                trial.test(Cut(tp=tp, pp=pp, ep=ep))
        for tp, ep in _widest(question, pairs):
            _lengthen(trial, tp, ep)
    kept, why = _ranked(question, trial.kept)
    return Search(
        question=question,
        engine=trial.engine,
        kept=tuple(kept),
        rejected=tuple(trial.rejected),
        why=why,
    )


# --- which cuts


def _pairs(trial: _Trial) -> Iterator[tuple[int, int]]:
    """Sizes of ``tp`` and ``ep`` that suit the model and the machine; notes those that do not."""
    q = trial.question
    slots = q.node.slots
    for tp in range(1, slots + 1):
        if slots % tp and q.shape.heads % tp:
            continue
        for ep in _experts_over(q, tp):
            cut = Cut(tp=tp, ep=ep)
            wrong = _refusal(q, cut)
            if wrong is None:
                yield tp, ep
            elif slots % tp == 0:
                trial.rejected.append(wrong)


def _experts_over(question: Question, tp: int) -> list[int]:
    engine = ENGINES[question.engine]
    if tp == 1 or question.shape.experts is None or "ep" not in engine.cuts:
        return [1]
    return [1, tp] if engine.ep_is_tp else [ep for ep in range(1, tp + 1) if tp % ep == 0]


def _refusal(question: Question, cut: Cut) -> Rejected | None:
    """The first thing that speaks against ``cut`` whatever memory there is."""
    if cut.tp > 1 and "tp" not in ENGINES[question.engine].cuts:
        return Rejected(cut=cut, code="plan.engine-capability", reason="the engine has no tp")
    problems = check_cut(
        question.shape,
        cut,
        gpus_per_node=question.node.slots,
        nvlink_domain=nvlink_domain(question.gpus.topology, question.gpus.per_node),
        allow=question.allow,
    )
    if question.engine == "tensorrt-llm":
        problems = without_heads(problems, question.options)
    first = next((p for p in problems if p.severity == "error"), None)
    return None if first is None else Rejected(cut=cut, code=first.code, reason=first.message)


def _stages_in_node(question: Question, tp: int) -> list[int]:
    """Lengths of pipelines inside a node that leave none of its GPUs over."""
    slots = question.node.slots
    if "pp" not in ENGINES[question.engine].cuts:
        return [1]
    most = min(slots // tp, question.shape.layers)
    return [pp for pp in range(1, most + 1) if slots % (tp * pp) == 0 and _asked(question, pp)]


def _asked(question: Question, pp: int) -> bool:
    layers = question.options.get("pp_partition")
    return not isinstance(layers, list) or len(layers) == pp


def _widest(question: Question, pairs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """For each ``ep`` the ``tp`` whose groups leave the fewest GPUs of a node over."""
    slots = question.node.slots
    for ep in dict.fromkeys(ep for _, ep in pairs):
        yield max(((tp, e) for tp, e in pairs if e == ep), key=lambda p: (-(slots % p[0]), p[0]))


def _lengthen(trial: _Trial, tp: int, ep: int) -> None:
    """Pipelines over more and more nodes, until more of them are no gain."""
    question = trial.question
    stages = question.node.slots // tp
    most = min(question.most_nodes or question.shape.layers, question.shape.layers // stages)
    if "pp" not in ENGINES[question.engine].cuts:
        return
    best, worse = 0.0, 0
    for nodes in range(2, most + 1):
        if not _asked(question, stages * nodes):
            continue
        found = trial.test(Cut(tp=tp, pp=stages * nodes, ep=ep))
        if found is not None:
            value = found.tokens_s_gpu or 0.0
            worse = worse + 1 if value <= best else 0
            best = max(best, value)
            if worse == _PATIENCE or found.cost is None:
                return


# Layers that divide evenly make a longer pipeline better than the one before it.
_PATIENCE = 2


# --- what each is worth


_Sizes = dict[str, int]
_BATCH, _TOKENS = "max_batch_size", "max_num_tokens"
# The usual ones are in `launcher.plan.trtllm_options`. Where they do not fit, smaller ones are
# tried in this order; where they are what limits the batch, larger ones.
_SMALLER: tuple[_Sizes, ...] = (
    {_BATCH: 256, _TOKENS: 8192},
    {_BATCH: 256, _TOKENS: 4096},
    {_BATCH: 128, _TOKENS: 2048},
    {_BATCH: 32, _TOKENS: 2048},
)
_MOST: _Sizes = {_BATCH: 2048, _TOKENS: 16384}
_GROWS = {"max-batch-size": _BATCH, "max-num-tokens": _TOKENS}
_LEAST_GAIN = 1.01


class _Trial:
    """Cuts of one question, as they are tested."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.gpu_bytes = cuda_bytes(question.gpus.model, question.gpus.memory or 0)
        self.engine = engine_memory(
            question.engine,
            question.shape,
            question.options,
            gpu_bytes=self.gpu_bytes,
            gpu_model=question.gpus.model,
            env=question.env,
        )
        self.kept: list[Candidate] = []
        self.rejected: list[Rejected] = []

    def check(self, cut: Cut) -> None:
        """Test a cut that somebody else chose."""
        if (wrong := _refusal(self.question, cut)) is None:
            self.test(cut)
        else:
            self.rejected.append(wrong)

    def test(self, cut: Cut) -> Candidate | None:
        """Keep ``cut`` with the best sizes of a step, or note why not."""
        own = self._own_sizes({_BATCH: self.engine.sequences, _TOKENS: self.engine.tokens})
        for sizes in (own, *(self._own_sizes(s) for s in _SMALLER if own)):
            engine = self._sized(sizes)
            found = self._fit_longest(cut, engine)
            if found.fits:
                break
        else:
            if not (found.may_fit and cut == self.question.cut):
                reason = _shortage(found, engine)
                self.rejected.append(Rejected(cut=cut, code="plan.gpu-memory", reason=reason))
                return None
        best = self._candidate(cut, sizes, found)
        while (more := self._larger(best)) is not None:
            best = more
        self.kept.append(best)
        return best

    def _own_sizes(self, sizes: _Sizes) -> _Sizes:
        """Those of ``sizes`` that are this project's to choose: the job is silent."""
        if self.question.engine != "tensorrt-llm":
            return {}
        return {name: n for name, n in sizes.items() if name not in self.question.options}

    def _sized(self, sizes: _Sizes) -> EngineMemory:
        return replace(
            self.engine,
            sequences=sizes.get(_BATCH, self.engine.sequences),
            tokens=sizes.get(_TOKENS, self.engine.tokens),
        )

    def _fit(self, cut: Cut, engine: EngineMemory, prompt: int, output: int) -> Fit:
        shape = self.question.shape
        found = fit(shape, cut, engine, self.gpu_bytes, prompt=prompt, output=output)
        if found is None:
            raise ValueError(f"the tensors of {shape.name} are not known")
        return found

    def _fit_longest(self, cut: Cut, engine: EngineMemory) -> Fit:
        return self._fit(cut, engine, self.question.longest, self.question.most_new)

    def _larger(self, best: Candidate) -> Candidate | None:
        """The same with a larger step, if steps are what limits it and memory allows."""
        name = _GROWS.get(best.cost.batch_limit) if best.cost is not None else None
        if name not in best.sizes or best.sizes[name] >= _MOST[name]:
            return None
        sizes = {**best.sizes, name: 2 * best.sizes[name]}
        found = self._fit_longest(best.cut, self._sized(sizes))
        if not found.fits:
            return None
        more = self._candidate(best.cut, sizes, found)
        gains = (more.tokens_s_gpu or 0) > (best.tokens_s_gpu or 0) * _LEAST_GAIN
        return more if gains else None

    def _candidate(self, cut: Cut, sizes: _Sizes, found: Fit) -> Candidate:
        nodes, tasks = span(cut, self.question.node.slots)
        speed, unknown = self._cost(cut, self._sized(sizes), found, tasks)
        return Candidate(
            cut=cut,
            nodes=nodes,
            gpus=_held(self.question.node, cut, nodes),
            sizes=sizes,
            fit=found,
            cost=speed,
            unknown=unknown,
        )

    def _cost(
        self, cut: Cut, engine: EngineMemory, found: Fit, tasks: int
    ) -> tuple[Cost | None, str]:
        q, work = self.question, self.question.workload
        machine = find_machine(q.gpus, q.fabric, cut)
        if machine is None:
            return None, f"what GPU {q.gpus.model} can do is not known"
        machine = replace(machine, links=replace(machine.links, per_node=tasks))
        if any(stage.kv_in_windows for stage in found.stages):
            # Of windows it depends on the lengths how many tokens the cache holds.
            found = self._fit(cut, engine, round(work.prompt_tokens), round(work.new_tokens))
        serving = Serving(
            engine=q.engine,
            kv_tokens=found.kv_tokens,
            kv_element_bytes=engine.kv_bits / 8,
            max_batch_size=engine.sequences,
            max_num_tokens=engine.tokens,
            attention_dp=engine.attention_dp,
        )
        try:
            return cost(q.shape, cut, machine, work, serving), ""
        except ValueError as exc:
            return None, str(exc)


def _held(node: NodeShape, cut: Cut, nodes: int) -> float:
    """GPUs that one replica keeps from others, itself or not."""
    if node.unit == "gpu":
        return cut.ranks
    return node.slots_all / (node.slots // cut.ranks) if nodes == 1 else nodes * node.slots_all


def _shortage(found: Fit, engine: EngineMemory) -> str:
    """What the fullest stage is short of."""
    stage = min(found.stages, key=lambda s: s.kv_least_bytes - s.sequence_bytes(found.longest))
    have, weights = format_bytes(stage.capacity), format_bytes(stage.weights)
    one = stage.sequence_bytes(found.longest)
    if stage.kv_least_bytes <= 0:
        used = stage.capacity - stage.free - stage.kv_bytes + stage.margin
        part = "" if engine.of_free else f", of which the engine takes {engine.fraction:.0%}"
        return f"needs {format_bytes(used)} of {have} a GPU{part}: {weights} are weights"
    if stage.kv_least_bytes < one:
        return (
            f"beside {weights} of weights a GPU of {have} has {format_bytes(stage.kv_least_bytes)} "
            f"for the KV cache, and a sequence of {found.longest:,} tokens takes {format_bytes(one)}"
        )
    over = stage.margin - stage.free - stage.kv_bytes + stage.kv_least_bytes
    return (
        f"beside {weights} of weights and the KV cache's share of the rest ({engine.fraction:.0%}) "
        f"a GPU of {have} is {format_bytes(over)} short for graphs and logits"
    )


# --- which one


def _ranked(question: Question, kept: list[Candidate]) -> tuple[list[Candidate], str]:
    """The chosen one first, and why; those whose speed is not known come last."""
    if not kept:
        return [], "nothing fits"
    known = sorted((c for c in kept if c.cost is not None), key=_worth, reverse=True)
    others = sorted((c for c in kept if c.cost is None), key=_plainness(question))
    if not known:
        return others, f"the fewest GPUs that hold it: {others[0].unknown}"
    best = max((c for c in known if not _needless(c, known)), key=_worth)
    near = [c for c in known if _worth(c) >= (1 - TIE) * _worth(best) and not _needless(c, known)]
    chosen = min(near, key=_plainness(question))
    rest = [c for c in (*known, *others) if c is not chosen]
    return [chosen, *rest], _reason(question, chosen, best)


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


def _plainness(question: Question) -> Callable[[Candidate], tuple[float, ...]]:
    """What is taken among cuts that are alike: the least first."""
    experts = question.shape.experts

    def key(candidate: Candidate) -> tuple[float, ...]:
        cut = candidate.cut
        width = _THIN if experts is None else experts.intermediate_size * cut.ep / cut.tp
        thin, part = width < _THIN, cut.ep not in (1, cut.tp)
        return candidate.gpus, cut.ranks, cut.pp, thin, part, cut.ep, -_worth(candidate)

    return key


def _reason(question: Question, chosen: Candidate, best: Candidate) -> str:
    if question.cut is not None:
        return "stated in the job file"
    most = "the most output tokens a second for each GPU"
    if chosen is best:
        return most
    if (chosen.cut.tp, chosen.cut.pp) == (best.cut.tp, best.cut.pp):
        return f"{most}; spread like this, experts are cut into few thin slices"
    behind = 1 - _worth(chosen) / _worth(best)
    other = f"tp {best.cut.tp} x pp {best.cut.pp}"
    if best.cut.ep > 1:
        other += f", ep {best.cut.ep}"
    return f"within {max(behind, 0.01):.0%} of {other}, by fewer GPUs or a shorter pipeline"
