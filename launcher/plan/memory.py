"""What a model takes on each GPU, by pipeline stage, and what is left for the KV cache.

Weights are counted exactly (`launcher.models.weights`). What a step needs beside them is an
estimate, which docs/reference/memory.md holds against logs of real runs; a plan therefore fits only
with `MARGIN` to spare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.models.shapes import ModelShape
from launcher.models.weights import Slice, end_bytes, layer_bytes, sizes_known
from launcher.plan.engine_memory import EngineMemory
from launcher.plan.types import Cut

__all__ = ["MARGIN", "Fit", "StageMemory", "fit", "stage_layers", "stage_memory"]

# Of the whole GPU. The largest error of a count of what is no KV cache was 1.6 % of a GPU
# (docs/reference/memory.md).
MARGIN = 0.02
_WITHOUT_END = 2**62
_HARDLY_MORE = 1.5  # vLLM, v1/core/kv_cache_utils.py


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes of one GPU of a pipeline stage; all GPUs of a stage hold the same.

    Attributes
    ----------
    layers
        How many it has.
    weights, activations, reserve
        Weights with what is derived from them; the largest step; CUDA, libraries, NCCL.
    graphs
        CUDA graphs, and the logits where they come on top of the KV cache.
    outside
        What the engine takes beyond its own count.
    margin
        What must stay free because all this is an estimate.
    capacity
        What CUDA says that the GPU has.
    kv_bytes, kv_least_bytes, kv_most_bytes
        What the engine will give its KV cache; the same if all else takes the margin more than
        this, or less.
    kv_per_token
        What a token adds to the KV cache while no window is full.
    kv_in_windows, window
        That part of ``kv_per_token`` that stops growing at ``window`` tokens.
    step
        Tokens that it has beside them while a prompt is read.
    block
        Tokens that the cache gives out together.
    kv_tokens
        Tokens that the cache holds, whole blocks of them, as if there were no windows.
    """

    layers: int
    weights: int
    activations: int
    graphs: int
    reserve: int
    outside: int
    margin: int
    capacity: int
    kv_bytes: int
    kv_least_bytes: int
    kv_most_bytes: int
    kv_per_token: int
    kv_in_windows: int
    window: int
    step: int
    block: int
    kv_tokens: int

    @property
    def free(self) -> int:
        """Bytes that stay free beside all of this, margin or not; negative where it is too much."""
        used = self.weights + self.activations + self.graphs + self.reserve + self.outside
        return self.capacity - used - self.kv_bytes

    @property
    def fits(self) -> bool:
        """Whether nothing runs out, and there is a KV cache, with the margin kept."""
        less = self.kv_bytes - self.kv_least_bytes
        return self.kv_least_bytes > 0 and self.free + less >= self.margin

    @property
    def may_fit(self) -> bool:
        """The same with the margin in favour, and the engine's share of the GPU as it should be.

        What is not even this does not start.
        """
        given = self.kv_bytes if self.kv_least_bytes == self.kv_most_bytes else 0
        used = self.weights + self.activations + self.graphs + self.reserve + given
        return self.kv_most_bytes > 0 and used <= self.capacity + self.margin

    def sequence_bytes(self, tokens: int) -> int:
        """What the blocks of one sequence of ``tokens`` take of the cache."""
        return self._held(tokens, self.window)

    def longest_bytes(self, tokens: int) -> int:
        """The same while its prompt is read: what the engine asks for to begin it at all."""
        return self._held(tokens, self.window + self.step)

    def _held(self, tokens: int, most: int) -> int:
        tokens = -(-tokens // self.block) * self.block
        grows = (self.kv_per_token - self.kv_in_windows) * tokens
        return grows + self.kv_in_windows * min(tokens, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a cut fits, and what it can hold.

    Attributes
    ----------
    caches
        KV caches of a replica: one, or with attention data parallelism one for each TP rank.
    kv_tokens
        Tokens that each of them holds in sequences of the given length, whose layers with windows
        may have stopped growing: what the smallest stage holds.
    sequences
        Sequences of that length in all of them at a time; the engine may take fewer in a step.
    longest
        Tokens that one sequence must be able to have.
    fits, may_fit
        Each stage does, and the cache holds one sequence of ``longest``.
    margin, source
        Bytes that stay free on each GPU, and why so many.
    """

    stages: tuple[StageMemory, ...]
    caches: int
    kv_tokens: int
    sequences: int
    longest: int
    fits: bool
    may_fit: bool
    margin: int
    source: str = "2 % of a GPU: docs/reference/memory.md"


def stage_layers(shape: ModelShape, pp: int, engine: EngineMemory) -> tuple[int, ...]:
    """How many layers each of ``pp`` stages gets.

    Notes
    -----
    TensorRT-LLM gives the first stages one more each (``mapping.py``, ``pp_layers``, which is
    ``torch.tensor_split``); vLLM the last ones but the very last (``distributed/utils.py``,
    ``get_pp_indices``).
    """
    if len(engine.layers) == pp and sum(engine.layers) == shape.layers:
        return engine.layers
    least, left = divmod(shape.layers, pp)
    if engine.uneven_first:
        return tuple(least + (index < left) for index in range(pp))
    return tuple(least + (pp - 1 - left <= index < pp - 1) for index in range(pp))


def stage_memory(
    shape: ModelShape, cut: Cut, engine: EngineMemory, gpu_bytes: int
) -> tuple[StageMemory, ...] | None:
    """What each stage takes of a GPU of ``gpu_bytes``.

    Parameters
    ----------
    cut
        One that `launcher.plan.checks.check_cut` has nothing against.
    gpu_bytes
        As `launcher.plan.engine_memory.cuda_bytes` has it.

    Returns
    -------
    tuple[StageMemory, ...] | None
        One for each of ``cut.pp`` stages; None where neither the model's architecture nor its
        tensors are known.
    """
    if not sizes_known(shape):
        return None
    tp = _attention_tp(cut, engine)
    part = Slice(tp=tp, ep=cut.ep, moe_tp=cut.tp // cut.ep, plain_bits=engine.plain_bits)
    of_layers = layer_bytes(shape, part)
    before, behind = end_bytes(shape, part, joined=cut.pp == 1)
    stages, start = [], 0
    for index, count in enumerate(stage_layers(shape, cut.pp, engine)):
        weights = sum(of_layers[start : start + count])
        start += count
        last = index == cut.pp - 1
        weights += before * (index == 0) + behind * last
        stages.append(_stage(shape, cut, engine, gpu_bytes, count, weights, last=last))
    return tuple(stages)


def _attention_tp(cut: Cut, engine: EngineMemory) -> int:
    # With attention DP TensorRT-LLM leaves the rest whole (_torch/models/modeling_deepseekv3.py;
    # modeling_utils.py, DecoderModelForCausalLM).
    return 1 if engine.attention_dp else cut.tp


def _stage(
    shape: ModelShape,
    cut: Cut,
    engine: EngineMemory,
    gpu_bytes: int,
    layers: int,
    weights: int,
    *,
    last: bool,
) -> StageMemory:
    logits = engine.sequences * shape.vocab_size * engine.logit_bytes * last
    step = _step_bytes(shape, cut, engine)
    # The last hidden states are still there when tokens are drawn.
    drawing = logits + 2 * engine.tokens * shape.hidden_size * last
    activations = max(step, drawing) if engine.draws_inside else step
    reserve = engine.reserve_bytes + engine.peers_bytes * (cut.ranks > 1)
    graphs = engine.graphs_bytes + (0 if engine.draws_inside else logits)
    outside = math.ceil(engine.outside_share * gpu_bytes)
    margin = math.ceil(MARGIN * gpu_bytes)
    full, windowed = _kv_per_token(shape, cut, engine, layers)
    fixed = weights + activations + reserve
    cache, least, most = (
        _limited(_cache(engine, gpu_bytes, fixed + more, graphs), full + windowed, engine)
        for more in (0, margin, -margin)
    )
    return StageMemory(
        layers=layers,
        weights=weights,
        activations=activations,
        graphs=graphs,
        reserve=reserve,
        outside=outside,
        margin=margin,
        capacity=gpu_bytes,
        kv_bytes=cache,
        kv_least_bytes=least,
        kv_most_bytes=most,
        kv_per_token=full + windowed,
        kv_in_windows=windowed if engine.windows else 0,
        window=(shape.sliding_window or 0) + engine.block,
        step=engine.tokens if engine.pooled else 0,
        block=engine.block,
        kv_tokens=_whole_blocks(cache, full + windowed, engine.block),
    )


def _cache(engine: EngineMemory, gpu_bytes: int, fixed: int, graphs: int) -> int:
    if engine.of_free:
        return max(int((gpu_bytes - fixed) * engine.fraction), 0)
    return max(int(gpu_bytes * engine.fraction) - fixed - graphs, 0)


def _limited(cache: int, per_token: int, engine: EngineMemory) -> int:
    if engine.kv_limit_bytes is not None:
        cache = engine.kv_limit_bytes if engine.exactly else min(cache, engine.kv_limit_bytes)
    if engine.kv_limit_tokens is not None:
        cache = min(cache, engine.kv_limit_tokens * per_token)
    return cache


def _whole_blocks(cache: int, per_token: int, block: int) -> int:
    # A stage without attention holds any number of tokens: the other stages decide.
    return cache // (per_token * block) * block if per_token else _WITHOUT_END


# aiconfigurator, sdk/backends/trtllm_backend.py: what the largest step takes is 2 bytes for each
# of its tokens, times the hidden size, times this, by tp 1, 2, 4 and more; never below 70 MiB.
_DENSE = (11, 6.5, 5, 5)
_SPARSE = (22, 13, 10, 10)
_LEAST_STEP = 70 * 1024**2


def _step_bytes(shape: ModelShape, cut: Cut, engine: EngineMemory) -> int:
    factors = _DENSE if shape.experts is None else _SPARSE
    factor = factors[min(cut.tp.bit_length() - 1, len(factors) - 1)]
    return max(int(2 * engine.tokens * shape.hidden_size * factor), _LEAST_STEP)


def _kv_per_token(
    shape: ModelShape, cut: Cut, engine: EngineMemory, layers: int
) -> tuple[int, int]:
    """Bytes of a token in this stage's layers: those that see everything, and the others.

    Layers of one kind are taken to lie evenly, as in all models that have several kinds. Latent
    attention keeps the same on every GPU, and KV heads are repeated once there are none left.
    """
    if (latent := shape.latent_attention) is not None:
        elements = latent.kv_lora_rank + latent.rope_head_dim
    else:
        tp = min(_attention_tp(cut, engine), shape.kv_heads)
        elements = 2 * shape.head_dim * -(-shape.kv_heads // tp)
    here = math.ceil(shape.attention_layers * layers / shape.layers)
    full = math.ceil(shape.full_attention_layers * layers / shape.layers)
    full, windowed = min(full, here), max(here - full, 0)
    if engine.pooled and engine.windows:
        full, windowed = _pooled(shape, full, windowed)
    each = math.ceil(elements * engine.kv_bits / 8)
    return full * each, windowed * each


def _pooled(shape: ModelShape, full: int, windowed: int) -> tuple[int, int]:
    """Layers of a stage as they count where groups of both kinds have as many.

    A group has as many layers as the rarer kind, or the other one where that has hardly more.
    """
    kinds = shape.full_attention_layers, shape.attention_layers - shape.full_attention_layers
    few, many = sorted(kinds)
    if not few:
        return full, windowed
    size = many if many < _HARDLY_MORE * few else few
    groups = [-(-kind // size) for kind in kinds]
    here = max(-(-full // groups[0]), -(-windowed // groups[1]))
    return groups[0] * here, groups[1] * here


def fit(
    shape: ModelShape,
    cut: Cut,
    engine: EngineMemory,
    gpu_bytes: int,
    *,
    prompt: int,
    output: int,
) -> Fit | None:
    """Whether ``cut`` fits, and how many sequences of ``prompt`` and ``output`` tokens at a time.

    A sequence is counted with all the tokens that it will have: nothing is thrown out that has
    begun (TensorRT-LLM's ``GUARANTEED_NO_EVICT``; vLLM would compute it again).

    Returns
    -------
    Fit | None
        None as from `stage_memory`.
    """
    stages = stage_memory(shape, cut, engine, gpu_bytes)
    if stages is None:
        return None
    length = engine.length or shape.max_position_embeddings or 0
    longest = max(prompt + output, length if engine.whole_length else 0)
    caches = cut.tp if engine.attention_dp else 1
    return Fit(
        stages=stages,
        caches=caches,
        kv_tokens=min(_held(stage, prompt + output) for stage in stages),
        sequences=caches * min(_sequences(stage, prompt + output) for stage in stages),
        longest=longest,
        fits=all(s.fits and s.kv_least_bytes >= s.longest_bytes(longest) for s in stages),
        may_fit=all(s.may_fit and s.kv_most_bytes >= s.longest_bytes(longest) for s in stages),
        margin=max(stage.margin for stage in stages),
    )


def _held(stage: StageMemory, tokens: int) -> int:
    each = stage.sequence_bytes(tokens)
    if not stage.kv_in_windows or each == 0:
        return stage.kv_tokens
    return stage.kv_bytes * tokens // each


def _sequences(stage: StageMemory, tokens: int) -> int:
    each = stage.sequence_bytes(tokens)
    return stage.kv_bytes // each if each else _WITHOUT_END
