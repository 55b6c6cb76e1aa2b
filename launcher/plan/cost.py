"""What a cut costs: seconds of a step, tokens a second of a replica, and what limits them.

A replica answers many rows by in-flight batching. In its steady state a step takes ``d``
sequences one token further and, on average, reads the prompts of the ``d / new`` that come in
their place. The step's time is a roofline: each group of matrices takes what reading its weights
or what computing with them takes, whichever is longer; attention to the cache likewise; messages
between GPUs come on top. Formulas, sources and accuracy: docs/reference/cost-model.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from launcher.models.shapes import ModelShape
from launcher.plan.collectives import all_reduce_s, hop_s
from launcher.plan.constants import (
    ACTIVATION_PASSES,
    CARD_FP4_SHARE,
    CPU_ERROR,
    ENGINE_PACE,
    EP_UNEVENNESS,
    EXPERTS_SHARE,
    HBM_SHARE,
    MATH_SHARE,
    MODEL_ERROR,
    PIPELINE_EVENNESS,
    ROUTING_PASSES,
    WIDENED_SHARE,
    Precision,
)
from launcher.plan.machine import Machine
from launcher.plan.types import Cut
from launcher.plan.work import (
    Part,
    computed_in,
    decode_attention_flops,
    is_quantised,
    kv_elements,
    matrices,
    prefill_attention_flops,
    stored_bytes,
    touched,
)

__all__ = ["BatchLimit", "Cost", "Limit", "Serving", "Workload", "cost"]

Limit = Literal["weights", "math", "kv-cache", "links", "pipeline", "engine"]
BatchLimit = Literal["kv-cache", "max-batch-size", "max-num-tokens", "rows"]
_NOTHING: Mapping[Limit, float] = dict.fromkeys(get_args(Limit), 0.0)
_BF16_BYTES = 2
# What experts get of a token, and what they give back: FP8 and BF16 (DeepSeek-V3, arXiv
# 2412.19437, 3.3.2; TensorRT-LLM, _torch/modules/fused_moe, quantises before it sends).
_GIVEN_BYTES, _BACK_BYTES = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The rows that one replica answers.

    Attributes
    ----------
    prompt_tokens, new_tokens
        Means of a row.
    most_new_tokens
        ``sampling.max_tokens``, for which some engines keep room; None where it is the mean.
    spread
        Standard deviation of the new tokens over their mean: 0 for equal lengths, 1 for
        exponential ones.
    doubt
        Factor by which the mean of the new tokens may be off either way.
    rows
        How many there are; None for more than the replica takes at once.

    Raises
    ------
    ValueError
        Less than one token of either kind, or a factor below 1.
    """

    prompt_tokens: float
    new_tokens: float
    most_new_tokens: float | None = None
    spread: float = 0.0
    doubt: float = 1.0
    rows: int | None = None

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.new_tokens, self.doubt) < 1:
            raise ValueError(f"prompts, answers and doubt are at least 1: {self}")

    @property
    def new_in_flight(self) -> float:
        """Tokens that a sequence in flight has on average: long ones are met more often."""
        return self.new_tokens * (1 + self.spread**2) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the engine runs, as it is set up.

    Attributes
    ----------
    kv_tokens
        Tokens that the KV cache holds, of one rank where each attends for its own sequences. Where
        layers with a window free what they no longer see, it holds more of them the longer a
        sequence is: tokens of sequences of the workload's lengths.
    kv_element_bytes
        2 for BF16, 1 for FP8.
    max_batch_size, max_num_tokens
        Of a step: ``max_num_seqs`` and ``max_num_batched_tokens`` of vLLM.
    attention_dp
        Each rank attends for its own sequences, and tokens are exchanged around the experts
        (``enable_attention_dp`` of TensorRT-LLM).
    """

    engine: str
    kv_tokens: float
    max_batch_size: int
    max_num_tokens: int
    kv_element_bytes: float = 2.0
    attention_dp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one replica is expected to do.

    Attributes
    ----------
    tokens_s, tokens_s_range
        New tokens a second in the steady state, and what they may be.
    new_tokens_range
        What the mean of a row's new tokens may be.
    gpus
        Of the replica.
    sequences
        In flight.
    batch_limit, limit
        What keeps them from being more, and what most of a step's time goes to.
    step_s
        A step with its share of prompts; in a pipeline, from one micro-batch to the next.
    decode_s, prefill_s
        How long a sequence waits for its next token where no prompt is read, and one mean prompt
        alone takes.
    parts
        What ``step_s`` is made of: reading weights, computing, attention to the cache, messages,
        stages that wait, CPUs.
    """

    tokens_s: float
    tokens_s_range: tuple[float, float]
    new_tokens_range: tuple[float, float]
    gpus: int
    sequences: float
    batch_limit: BatchLimit
    limit: Limit
    step_s: float
    decode_s: float
    prefill_s: float
    parts: Mapping[Limit, float]

    @property
    def tokens_s_gpu(self) -> float:
        return self.tokens_s / self.gpus

    def gpu_hours(self, rows: float) -> tuple[float, float]:
        """GPU hours for ``rows`` rows, least and most, without starts and the last rows' tail."""
        slow, fast = self.tokens_s_range
        few, many = self.new_tokens_range
        each = self.gpus * rows / 3600
        return each * few / fast, each * many / slow


def cost(
    shape: ModelShape, cut: Cut, machine: Machine, workload: Workload, serving: Serving
) -> Cost:
    """What a replica of ``shape``, cut by ``cut`` on ``machine``, does with ``workload``.

    Raises
    ------
    ValueError
        The engine's pace is not known; the cut spans nodes and ``machine`` does not say what
        joins them; the cache does not hold one row; or some layers do not attend: what they
        do is not modelled.
    """
    if serving.engine not in ENGINE_PACE:
        raise ValueError(f"the pace of engine {serving.engine} is not known")
    if shape.attention_layers < shape.layers:
        raise ValueError(f"layers of {shape.name} that do not attend are not modelled")
    sequences, batch_limit = _in_flight(cut, workload, serving)
    model = _Model(shape, cut, machine, workload, serving)
    batch = sequences / cut.pp
    step_s, parts = model.step(batch, batch / workload.new_tokens)
    decode_s, _ = model.step(batch, 0.0)
    tokens_s = batch / step_s
    limit = max(parts, key=lambda part: parts[part])
    error = CPU_ERROR if limit == "engine" else MODEL_ERROR
    return Cost(
        tokens_s=tokens_s,
        tokens_s_range=(tokens_s / error, tokens_s * error),
        new_tokens_range=(
            workload.new_tokens / workload.doubt,
            workload.new_tokens * workload.doubt,
        ),
        gpus=cut.ranks,
        sequences=sequences,
        batch_limit=batch_limit,
        limit=limit,
        step_s=step_s,
        decode_s=decode_s * cut.pp,
        prefill_s=model.alone(),
        parts=parts,
    )


def _in_flight(cut: Cut, workload: Workload, serving: Serving) -> tuple[float, BatchLimit]:
    """Sequences of a replica that are worked on at once, and what limits them."""
    pace = ENGINE_PACE[serving.engine]
    new = workload.new_in_flight
    if pace.reserves:
        new = max(workload.new_tokens, workload.most_new_tokens or 0.0)
    held = workload.prompt_tokens + new
    if serving.kv_tokens < held:
        raise ValueError(f"the cache holds {serving.kv_tokens:.0f} tokens, a row {held:.0f}")
    copies = cut.tp if serving.attention_dp else 1
    batches = copies * (cut.pp if pace.batch_per_stage else 1)
    tokens_each = 1 + workload.prompt_tokens / workload.new_tokens
    limits: dict[BatchLimit, float] = {
        "kv-cache": serving.kv_tokens * copies / held,
        "max-batch-size": serving.max_batch_size * batches,
        "max-num-tokens": serving.max_num_tokens * copies * cut.pp / tokens_each,
    }
    if workload.rows is not None:
        limits["rows"] = workload.rows
    least = min(limits, key=lambda limit: limits[limit])
    return limits[least], least


class _Model:
    """One replica: seconds of its steps by what they go to."""

    def __init__(
        self, shape: ModelShape, cut: Cut, machine: Machine, workload: Workload, serving: Serving
    ) -> None:
        self.shape, self.cut, self.machine = shape, cut, machine
        self.workload, self.serving = workload, serving
        self.weights = matrices(shape)
        self.pace = ENGINE_PACE[serving.engine]
        self.bytes_s = machine.gpu.hbm_bytes_s * HBM_SHARE
        self.context = workload.prompt_tokens + workload.new_in_flight

    def step(self, batch: float, prompts: float) -> tuple[float, dict[Limit, float]]:
        """Seconds of the mean step of ``batch`` sequences while ``prompts`` begin in each.

        Where less than one begins in a step, some steps have a whole prompt and the others none.
        """
        mean = prompts * self.workload.prompt_tokens
        without = self.round(batch, 0.0)
        if not mean:
            return sum(without.values()), without
        copies = self.cut.tp if self.serving.attention_dp else 1
        room = self.serving.max_num_tokens * copies - batch
        chunk = max(mean, min(self.workload.prompt_tokens, room))
        share, reading = mean / chunk, self.round(batch, chunk)
        parts = {name: share * reading[name] + (1 - share) * without[name] for name in without}
        return sum(parts.values()), parts

    def round(self, batch: float, chunk: float) -> dict[Limit, float]:
        """Seconds of one step of ``batch`` sequences and ``chunk`` tokens of prompts.

        With as many micro-batches in flight as there are stages a round takes no less than the
        slowest stage, nor than a micro-batch's own way through all stages and hops, shared.
        """
        stages, layers = self.cut.pp, self.shape.layers
        tokens = batch + chunk
        begun = chunk / self.workload.prompt_tokens
        body, head = self._body(batch, begun, tokens), self._head(batch + begun)
        # Layers that are left over go to other stages than the last, which has the head.
        fullest, last = -(-layers // stages) / layers, layers // stages / layers
        total = sum(body.values())
        ends = last * total + sum(head.values()) >= fullest * total
        share = last if ends else fullest
        parts = {name: share * body[name] + ends * head[name] for name in body}
        if stages > 1:
            hop = self._hop(tokens)
            slowest = sum(parts.values())
            mean = (total + sum(head.values())) / stages
            parts["links"] += max(0.0, mean + hop - slowest)
            parts["pipeline"] = sum(parts.values()) * (1 / PIPELINE_EVENNESS - 1)
        parts["engine"] = self._waited_s(batch, tokens, sum(parts.values()))
        return parts

    def _waited_s(self, batch: float, tokens: float, gpu_s: float) -> float:
        """For which the GPUs wait in a step that has ``gpu_s`` for them."""
        pace, experts = self.pace, self.shape.experts
        own = batch / self.cut.tp if self.serving.attention_dp else batch
        waited = pace.step_s + own * pace.row_s
        if experts is None or tokens <= pace.graph_tokens:
            return waited
        started_s = pace.experts_layer_s * len(experts.layers) / self.cut.pp
        return max(waited, started_s - gpu_s)

    def alone(self) -> float:
        """Seconds from a mean prompt to its first token, with nothing beside it."""
        prompt, stages = self.workload.prompt_tokens, self.cut.pp
        parts = (*self._body(0.0, 1.0, prompt).values(), *self._head(1.0).values())
        hops = (stages - 1) * self._hop(prompt) if stages > 1 else 0.0
        return sum(parts) + hops + self.pace.step_s

    def _body(self, batch: float, prompts: float, tokens: float) -> dict[Limit, float]:
        """Of all layers, as if one stage had them."""
        found: dict[Limit, float] = dict(_NOTHING)
        weights, tp = self.weights, self.cut.tp
        # With attention data parallelism all but the experts is there in whole on each rank.
        split = 1 if self.serving.attention_dp else tp
        reached = weights.expert * touched(weights, tokens) / tp
        active = weights.expert * weights.per_token
        groups: tuple[tuple[Part, float, float], ...] = (
            ("attention", weights.attention / split, weights.attention),
            ("mlp", weights.mlp / split, weights.mlp),
            ("experts", reached, active),
        )
        for part, read, multiplied in groups:
            self._add(found, part, read, multiplied * tokens / tp)
        found["kv-cache"] = self._attention_s(batch)
        work = prompts * prefill_attention_flops(self.shape, self.workload.prompt_tokens)
        found["math"] += work / tp / self._flops("bf16") + self._passes_s(tokens)
        found["links"] = self._messages_s(tokens)
        return found

    def _head(self, sequences: float) -> dict[Limit, float]:
        found: dict[Limit, float] = dict(_NOTHING)
        each = self.weights.head / self.cut.tp
        self._add(found, "head", each, each * sequences)
        return found

    def _add(self, found: dict[Limit, float], part: Part, read: float, products: float) -> None:
        """Seconds of one group of matrices: so many weights read, so many multiplied."""
        reading = read * stored_bytes(self.shape, part) / self.bytes_s
        precision = computed_in(self.shape, part, self.machine.gpu)
        computing = 2 * products / self._flops(precision)
        if precision == "bf16" and is_quantised(self.shape, part):
            computing /= WIDENED_SHARE
        uneven = 1.0
        if part == "experts":
            computing /= EXPERTS_SHARE
            uneven += EP_UNEVENNESS * math.log2(self.cut.ep)
        if reading > computing:
            found["weights"] += reading * uneven
        else:
            found["math"] += computing * uneven

    def _flops(self, precision: Precision) -> float:
        gpu = self.machine.gpu
        share = CARD_FP4_SHARE if precision == "fp4" and gpu.card else MATH_SHARE[precision]
        return gpu.flops[precision] * share

    def _passes_s(self, tokens: float) -> float:
        """Of what is neither a matrix product nor attention: the memory's speed decides."""
        shape, moe = self.shape, self.shape.experts
        passes = ACTIVATION_PASSES * shape.layers
        if moe is not None:
            passes += ROUTING_PASSES * moe.per_token * len(moe.layers)
        return passes * tokens / self.cut.tp * shape.hidden_size * _BF16_BYTES / self.bytes_s

    def _attention_s(self, batch: float) -> float:
        """Of the attention of ``batch`` sequences to the cache."""
        shape, tp = self.shape, self.cut.tp
        copies = tp if shape.latent_attention else max(1.0, tp / shape.kv_heads)
        if self.serving.attention_dp:
            copies = 1.0
        elements = batch * kv_elements(shape, self.context) * copies / tp
        flops = batch * decode_attention_flops(shape, self.context) / tp
        reading = elements * self.serving.kv_element_bytes / self.bytes_s
        return max(reading, flops / self._flops("bf16"))

    def _messages_s(self, tokens: float) -> float:
        """Between the ranks of a stage.

        Two all-reduces a layer, after attention and after the MLP (Megatron-LM, arXiv 1909.08053,
        section 3). With attention data parallelism an all-gather before the experts and a
        reduce-scatter behind them instead, which is what both engines do unless told otherwise
        (vLLM, ``all2all_backend``; TensorRT-LLM, ``select_alltoall_method_type``).
        """
        shape, links, tp = self.shape, self.machine.links, self.cut.tp
        payload = tokens * shape.hidden_size
        if not self.serving.attention_dp:
            return 2 * shape.layers * all_reduce_s(links, tp, payload * _BF16_BYTES)
        if shape.experts is None:
            return 0.0
        # An all-gather or a reduce-scatter is half of an all-reduce.
        moved = sum(
            all_reduce_s(links, tp, payload * size) / 2 for size in (_GIVEN_BYTES, _BACK_BYTES)
        )
        return len(shape.experts.layers) * moved

    def _hop(self, tokens: float) -> float:
        payload = tokens * self.shape.hidden_size * _BF16_BYTES
        return hop_s(self.machine.links, self.cut.tp, self.cut.ranks, payload)
