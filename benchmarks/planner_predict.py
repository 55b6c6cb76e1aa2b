"""What the planner says of a model on a GPU before vLLM is started, and options at its limits.

Configs of models are in `planner_models.json`, as their publishers have them but for positions.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.models.shapes import ModelShape, shape_from_config  # noqa: E402
from launcher.plan.constants import Gpu, find_gpu  # noqa: E402
from launcher.plan.cost import Cost, Serving, Workload, cost  # noqa: E402
from launcher.plan.engine_memory import EngineMemory, cuda_bytes, engine_memory  # noqa: E402
from launcher.plan.machine import find_machine  # noqa: E402
from launcher.plan.memory import Fit, fit  # noqa: E402
from launcher.plan.types import Cut  # noqa: E402
from launcher.spec.leaves import Bytes  # noqa: E402
from launcher.spec.site import Gpus  # noqa: E402

MODELS = Path(__file__).with_name("planner_models.json")
MIB = 2**20
# Lengths of rows: the mean, and how far each may be from it.
PROMPT, PROMPT_SPREAD = 1000, 250
NEW, NEW_SPREAD = 200, 100
WORKLOAD = Workload(
    prompt_tokens=PROMPT, new_tokens=NEW, most_new_tokens=NEW, spread=NEW_SPREAD / 3**0.5 / NEW
)
LENGTH = 4096
FILL_S = 15.0
COMMON: Mapping[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "enable_prefix_caching": False,
    "max_model_len": LENGTH,
    # Kernels of FlashInfer are built when they are first wanted, which takes many minutes.
    "enable_flashinfer_autotune": False,
}
# The same reason: vLLM would prefer FlashInfer's experts for these.
OF_MODEL: Mapping[str, Mapping[str, Any]] = {"qwen3-30b-a3b-fp8": {"moe_backend": "triton"}}
BYTES_STEP = 64 * MIB
SHARES = tuple(number / 200 for number in range(10, 200))

Plan = Literal["default", "full", "over", "least", "below"]
"""``default`` is vLLM's own share of a GPU, with CUDA graphs. The others have none: ``full`` has
the largest KV cache that is accepted and ``over`` the smallest that is refused, in bytes; ``least``
has the smallest share of the GPU that is accepted and ``below`` the largest that is refused."""
PLANS: tuple[Plan, ...] = get_args(Plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU as a site file tells it, of which a machine has ``count``."""

    model: str
    memory_bytes: int
    count: int

    @property
    def usable_bytes(self) -> int:
        return cuda_bytes(self.model, self.memory_bytes)

    def gpus(self) -> Gpus:
        return Gpus(
            model=self.model,
            memory=Bytes(self.memory_bytes),
            per_node=self.count,
            topology="all-to-all",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, how it is cut, and which plan of `PLANS`."""

    model: str
    cut: Cut
    plan: Plan

    @property
    def name(self) -> str:
        words = [self.model, *(f"{k} {n}" for k, n in self.sizes.items() if n > 1)]
        return " ".join(words)

    @property
    def sizes(self) -> dict[str, int]:
        return {"tp": self.cut.tp, "pp": self.cut.pp}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the planner says of a case.

    Attributes
    ----------
    logged_tokens
        The KV cache as vLLM's log has it.
    cost
        Of rows as in `WORKLOAD`; None where not one of them fits.
    """

    options: Mapping[str, Any]
    memory: EngineMemory
    fit: Fit
    logged_tokens: int
    cost: Cost | None

    @property
    def peak_bytes(self) -> int:
        """Of the fullest GPU."""
        return max(stage.capacity - stage.free for stage in self.fit.stages)

    def figures(self) -> dict[str, Any]:
        fullest = max(self.fit.stages, key=lambda stage: stage.capacity - stage.free)
        parts = ("weights", "activations", "graphs", "reserve", "outside", "kv_bytes", "capacity")
        found = {part: getattr(fullest, part) for part in parts}
        found |= {"peak": self.peak_bytes, "kv_tokens": self.logged_tokens}
        found |= {"fits": self.fit.fits, "may_fit": self.fit.may_fit}
        if self.cost is not None:
            found |= {
                "tokens_s": self.cost.tokens_s,
                "tokens_s_range": self.cost.tokens_s_range,
                "sequences": self.cost.sequences,
                "limit": self.cost.limit,
                "fill_s": self.cost.sequences * self.cost.prefill_s,
            }
        return found


def read_models(path: Path = MODELS) -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
    return models


def find_card(name: str, memory_mib: float, count: int) -> tuple[Card, Gpu]:
    """The card that nvidia-smi calls ``name``, with the memory that its data sheet has.

    Raises
    ------
    ValueError
        The planner does not know it.
    """
    gpu = find_gpu(name, int(memory_mib * MIB))
    if gpu is None:
        raise ValueError(f"the planner does not know the GPU {name} with {memory_mib:.0f} MiB")
    # "80GB" of a data sheet.
    return Card(model=gpu.family, memory_bytes=gpu.memory_gb * 10**9, count=count), gpu


def predict(
    config: Mapping[str, Any], case: Case, card: Card, fill_s: float = FILL_S
) -> Said | None:
    """What the planner says; None where it has no such plan for this model and GPU.

    Parameters
    ----------
    fill_s
        Rows in flight are no more than have their prompts read in these seconds.
    """
    shape = shape_from_config(case.model, config)
    options = _options(shape, case, card)
    if options is None:
        return None
    memory, found = _fit(shape, case.cut, options, card)
    machine = find_machine(card.gpus(), None, case.cut, 1)
    if found is None or machine is None:
        return None
    serving = Serving(
        engine="vllm",
        kv_tokens=found.kv_tokens,
        kv_element_bytes=memory.kv_bits / 8,
        max_batch_size=memory.sequences,
        max_num_tokens=memory.tokens,
    )
    try:
        rates = cost(shape, case.cut, machine, WORKLOAD, serving)
        if (rows := int(fill_s / rates.prefill_s)) < rates.sequences:
            few = dataclasses.replace(WORKLOAD, rows=max(rows, 1))
            rates = cost(shape, case.cut, machine, few, serving)
    except ValueError:
        rates = None
    logged = logged_tokens(found, options["max_model_len"])
    return Said(options=options, memory=memory, fit=found, logged_tokens=logged, cost=rates)


def logged_tokens(found: Fit, length: int) -> int:
    """The KV cache as vLLM's log has it: sequences of ``length`` in it, times ``length``.

    (``v1/core/kv_cache_utils.py``, ``get_kv_cache_capacity``)
    """
    return min(stage.kv_bytes * length // stage.longest_bytes(length) for stage in found.stages)


def _fit(
    shape: ModelShape, cut: Cut, options: Mapping[str, Any], card: Card
) -> tuple[EngineMemory, Fit | None]:
    there = card.usable_bytes
    memory = engine_memory("vllm", shape, options, gpu_bytes=there, gpu_model=card.model)
    return memory, fit(shape, cut, memory, there, prompt=PROMPT, output=NEW)


def _options(shape: ModelShape, case: Case, card: Card) -> dict[str, Any] | None:
    base = {**COMMON, **OF_MODEL.get(case.model, {})}

    def fits(**more: Any) -> Fit | None:
        _, found = _fit(shape, case.cut, base | more, card)
        return found

    if case.plan == "default":
        found = fits()
        return base if found is not None and found.fits else None
    base["enforce_eager"] = True
    sizes = range(BYTES_STEP, card.memory_bytes * 2, BYTES_STEP)
    by_bytes: Callable[[float], Fit | None] = lambda size: fits(kv_cache_memory_bytes=int(size))  # noqa: E731 - said once
    by_share: Callable[[float], Fit | None] = lambda share: fits(gpu_memory_utilization=share)  # noqa: E731 - said once
    if case.plan == "full":
        return _with(base, "kv_cache_memory_bytes", _last(sizes, by_bytes, accepted=True))
    if case.plan == "over":
        return _with(base, "kv_cache_memory_bytes", _first_refused(sizes, by_bytes))
    if case.plan == "least":
        return _with(base, "gpu_memory_utilization", _first(SHARES, by_share))
    return _with(base, "gpu_memory_utilization", _last(SHARES, by_share, accepted=False))


def _with(base: Mapping[str, Any], name: str, value: float | None) -> dict[str, Any] | None:
    return None if value is None else {**base, name: value}


def _first(values: Iterable[float], found: Callable[[float], Fit | None]) -> float | None:
    """The least value that is accepted."""
    return next((v for v in values if (f := found(v)) is not None and f.fits), None)


def _first_refused(values: Iterable[float], found: Callable[[float], Fit | None]) -> float | None:
    """The least value that is refused beyond all that are accepted."""
    accepted = False
    for value in values:
        now = found(value)
        if now is None:
            return None
        accepted = accepted or now.fits
        if accepted and not now.may_fit:
            return value
    return None


def _last(
    values: Iterable[float], found: Callable[[float], Fit | None], *, accepted: bool
) -> float | None:
    """The largest value that is accepted, or of those below the accepted ones the last refused."""
    last = None
    for value in values:
        now = found(value)
        if now is None:
            return None
        if now.fits if accepted else not now.may_fit:
            last = value
        elif last is not None:
            return last
    return last
