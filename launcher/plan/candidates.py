"""One cut of a model over a machine: whether it can be, whether it fits, and what it is worth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.models.shapes import ModelShape
from launcher.plan.capabilities import ENGINES
from launcher.plan.checks import check_cut, nvlink_domain
from launcher.plan.cost import Cost, Workload
from launcher.plan.engine_memory import EngineMemory, cuda_bytes, engine_memory
from launcher.plan.layout import NodeShape, span
from launcher.plan.memory import Fit, fit
from launcher.plan.pace import replica_cost
from launcher.plan.trtllm_checks import without_heads
from launcher.plan.types import Cut
from launcher.spec.site import Fabric, Gpus
from launcher.units import format_bytes

__all__ = ["Candidate", "Question", "Rejected", "Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be cut, over what, for which rows.

    Attributes
    ----------
    shape
        A model whose tensors are known (`launcher.models.weights.sizes_known`).
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

    def can(self, axis: str) -> bool:
        """Whether the engine can be cut along ``tp``, ``pp`` or ``ep``."""
        return axis in ENGINES[self.engine].cuts


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
# vLLM keeps room for one row as long as the model takes, or with this as long as fits beside the
# weights (v1/core/kv_cache_utils.py, _auto_fit_max_model_len, in 0.20 to 0.33).
_LENGTH, _AS_FITS = "max_model_len", -1


class Trial:
    """Cuts of one question, as they are tested.

    Attributes
    ----------
    kept, rejected
        In the order in which they were tested.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.kept: list[Candidate] = []
        self.rejected: list[Rejected] = []
        self._gpu_bytes = cuda_bytes(question.gpus.model, question.gpus.memory or 0)
        self._engine = engine_memory(
            question.engine,
            question.shape,
            question.options,
            gpu_bytes=self._gpu_bytes,
            gpu_model=question.gpus.model,
            env=question.env,
        )
        self._ladder = self._sizes_to_try()

    def allows(self, cut: Cut) -> bool:
        """Whether ``cut`` can be whatever memory there is; notes the first reason why not."""
        q = self.question
        problems = check_cut(
            q.shape,
            cut,
            gpus_per_node=q.node.slots,
            nvlink_domain=nvlink_domain(q.gpus.topology, q.gpus.per_node),
            allow=q.allow,
        )
        if q.engine == "tensorrt-llm":
            problems = without_heads(problems, q.options)
        first = next((p for p in problems if p.severity == "error"), None)
        if first is not None:
            self.rejected.append(Rejected(cut=cut, code=first.code, reason=first.message))
        return first is None

    def test(self, cut: Cut) -> Candidate | None:
        """Keep ``cut`` with the best sizes of a step, or note what memory it lacks.

        One that the job states is kept if it may fit.

        Raises
        ------
        ValueError
            The sizes of the model's tensors are not known.
        """
        sizes, found = self._first_that_fits(cut)
        if not found.fits and not (found.may_fit and cut == self.question.cut):
            reason = _shortage(found, self._sized(sizes))
            self.rejected.append(Rejected(cut=cut, code="plan.gpu-memory", reason=reason))
            return None
        best = self._candidate(cut, sizes, found)
        while (more := self._larger(best)) is not None:
            best = more
        self.kept.append(best)
        return best

    def _first_that_fits(self, cut: Cut) -> tuple[_Sizes, Fit]:
        """Or the last sizes that were tried."""
        sizes = self._ladder[0]
        found = self._fit_longest(cut, sizes)
        for smaller in self._ladder[1:]:
            if found.fits:
                break
            sizes, found = smaller, self._fit_longest(cut, smaller)
        return sizes, found

    def _sizes_to_try(self) -> list[_Sizes]:
        """What is this project's to choose, because the job is silent, in order."""
        given = self.question.options
        if self.question.engine == "vllm" and _LENGTH not in given:
            return [{}, {_LENGTH: _AS_FITS}]
        if self.question.engine != "tensorrt-llm":
            return [{}]
        usual = {_BATCH: self._engine.sequences, _TOKENS: self._engine.tokens}
        return [
            {name: n for name, n in sizes.items() if name not in given}
            for sizes in (usual, *_SMALLER)
        ]

    def _sized(self, sizes: Mapping[str, int]) -> EngineMemory:
        return replace(
            self._engine,
            sequences=sizes.get(_BATCH, self._engine.sequences),
            tokens=sizes.get(_TOKENS, self._engine.tokens),
            whole_length=self._engine.whole_length and _LENGTH not in sizes,
        )

    def _fit_longest(self, cut: Cut, sizes: _Sizes) -> Fit:
        q = self.question
        return self._fit(cut, self._sized(sizes), q.longest, q.most_new)

    def _fit(self, cut: Cut, engine: EngineMemory, prompt: int, output: int) -> Fit:
        shape = self.question.shape
        found = fit(shape, cut, engine, self._gpu_bytes, prompt=prompt, output=output)
        if found is None:
            raise ValueError(f"the tensors of {shape.name} are not known")
        return found

    def _larger(self, best: Candidate) -> Candidate | None:
        """The same with a larger step, if steps are what limits it and memory allows."""
        name = _GROWS.get(best.cost.batch_limit, "") if best.cost is not None else ""
        if name not in best.sizes or best.sizes[name] >= _MOST[name]:
            return None
        sizes = {**best.sizes, name: 2 * best.sizes[name]}
        found = self._fit_longest(best.cut, sizes)
        if not found.fits:
            return None
        more = self._candidate(best.cut, sizes, found)
        gains = (more.tokens_s_gpu or 0) > (best.tokens_s_gpu or 0) * _LEAST_GAIN
        return more if gains else None

    def _candidate(self, cut: Cut, sizes: _Sizes, found: Fit) -> Candidate:
        q = self.question
        nodes, _ = span(cut, q.node.slots)
        speed, unknown = None, ""
        try:
            memory = self._sized(sizes)
            speed = replica_cost(
                q.shape, cut, nodes, q.engine, memory, q.gpus, q.fabric, q.workload
            )
        except ValueError as exc:
            unknown = str(exc)
        return Candidate(
            cut=cut,
            nodes=nodes,
            gpus=_held(q.node, cut, nodes),
            sizes=sizes,
            fit=found,
            cost=speed,
            unknown=unknown,
        )


def _held(node: NodeShape, cut: Cut, nodes: int) -> float:
    """GPUs that one replica keeps from others, itself or not."""
    if node.unit == "gpu":
        return cut.ranks
    return node.slots_all / (node.slots // cut.ranks) if nodes == 1 else nodes * node.slots_all


def _shortage(found: Fit, engine: EngineMemory) -> str:
    """What the fullest stage is short of."""
    stage = min(found.stages, key=lambda s: s.kv_least_bytes - s.longest_bytes(found.longest))
    have, weights = format_bytes(stage.capacity), format_bytes(stage.weights)
    one, cache = stage.longest_bytes(found.longest), stage.kv_least_bytes
    if cache <= 0:
        used = stage.capacity - stage.free - stage.kv_bytes + stage.margin
        part = "" if engine.of_free else f", of which the engine takes {engine.fraction:.0%}"
        return f"needs {format_bytes(used)} of {have} a GPU{part}: {weights} are weights"
    beside = f"beside {weights} of weights a GPU of {have}"
    if cache < one:
        return (
            f"{beside} has {format_bytes(cache)} for the KV cache, and a sequence of "
            f"{found.longest:,} tokens takes {format_bytes(one)}"
        )
    short = stage.margin - stage.free - stage.kv_bytes + cache
    return (
        f"{beside} is {format_bytes(short)} short: the KV cache takes {engine.fraction:.0%} of "
        "the rest, and graphs and logits come on top"
    )
