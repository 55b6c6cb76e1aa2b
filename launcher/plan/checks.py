"""Whether a model can be cut in a given way, and whether the cut suits the machine.

Pure arithmetic. All rules are tried, so that one answer tells everything that is wrong; the
hints hold only values that break no other rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from launcher.errors import Problem
from launcher.models.shapes import ModelShape
from launcher.plan.types import Cut

__all__ = ["check_cut", "nvlink_domain"]


def nvlink_domain(topology: str | None, per_node: int) -> int | None:
    """How many GPUs of a node NVLink joins: the largest TP group that needs no slower link.

    Parameters
    ----------
    topology
        ``all-to-all``, ``pairs`` or ``none``, as in a site file; None where it does not say.
    per_node
        GPUs of a node.

    >>> nvlink_domain("pairs", 8), nvlink_domain(None, 8)
    (2, None)
    """
    if topology is None:
        return None
    return {"all-to-all": per_node, "pairs": min(2, per_node), "none": 1}[topology]


def check_cut(
    shape: ModelShape | None,
    cut: Cut,
    *,
    gpus_per_node: int | None,
    nvlink_domain: int | None,
    allow: Collection[str],
) -> list[Problem]:
    """Everything that speaks against ``cut``.

    Parameters
    ----------
    shape
        The model, or None where nothing is known of it: then only the machine is checked, and
        that ``ep`` divides ``tp``.
    gpus_per_node
        GPUs (or slots) that may be used on each node.
    nvlink_domain
        GPUs joined by NVLink. Both are None where the site does not say.
    allow
        ``tp-over-fabric`` turns that problem into a warning.

    Returns
    -------
    list[Problem]
        ``plan.tp-heads``, ``plan.tp-kv-heads``, ``plan.tp-intermediate``, ``plan.quant-block``,
        ``plan.ep-tp``, ``plan.ep-dense``, ``plan.ep-experts``, ``plan.pp-layers`` and
        ``plan.tp-over-fabric``, each at most once; empty when the cut is sound.

    Notes
    -----
    Ranks and experts are cut as in TensorRT-LLM (``tensorrt_llm/mapping.py``, class
    ``Mapping``: ``moe_tp_size * moe_ep_size == tp_size``), heads as in its ``tensorrt_llm/
    layers/attention.py`` (query heads divide evenly; fewer KV heads than ranks are repeated).
    """
    fabric = _Fabric(gpus_per_node, nvlink_domain)
    rules = _rules(shape, fabric, over_fabric="tp-over-fabric" in allow)
    tp, pp = (cut.tp, cut.pp) if shape is None else (shape.heads, shape.layers)
    most: _Most = {"tp": tp, "ep": cut.tp, "pp": pp}
    return [
        Problem(rule.code, message, hint=_hint(rule, rules, cut, most), severity=rule.severity)
        for rule in rules
        if (message := rule.check(cut))
    ]


_Knob = Literal["tp", "pp", "ep"]
_Most = dict[_Knob, int]


@dataclass(frozen=True, slots=True)
class _Rule:
    """``check`` says what is wrong with a cut; turning one of ``knobs`` can right it."""

    code: str
    knobs: tuple[_Knob, ...]
    check: Callable[[Cut], str | None]
    severity: Literal["error", "warning"] = "error"
    otherwise: str = ""


def _rules(shape: ModelShape | None, fabric: _Fabric, *, over_fabric: bool) -> list[_Rule]:
    rules = [] if shape is None else _shape_rules(shape)
    rules.append(_Rule("plan.ep-tp", ("ep", "tp"), _ep_tp))
    if over_fabric:
        rules.append(_Rule("plan.tp-over-fabric", ("tp",), fabric.crossing, "warning"))
    else:
        allow = " and cut further by pp, or set allow: [tp-over-fabric]"
        rules.append(_Rule("plan.tp-over-fabric", ("tp",), fabric.crossing, otherwise=allow))
    return rules


def _shape_rules(shape: ModelShape) -> list[_Rule]:
    return [
        _Rule("plan.tp-heads", ("tp",), partial(_tp_heads, shape)),
        _Rule("plan.tp-kv-heads", ("tp",), partial(_tp_kv_heads, shape)),
        _Rule("plan.tp-intermediate", ("tp", "ep"), partial(_tp_intermediate, shape)),
        _Rule("plan.quant-block", ("tp", "ep"), partial(_quant_block, shape)),
        _Rule("plan.ep-dense", ("ep",), partial(_ep_dense, shape)),
        _Rule("plan.ep-experts", ("ep",), partial(_ep_experts, shape)),
        _Rule("plan.pp-layers", ("pp",), partial(_pp_layers, shape)),
    ]


def _tp_heads(shape: ModelShape, cut: Cut) -> str | None:
    if shape.heads % cut.tp == 0:
        return None
    return f"the {shape.heads} attention heads of {shape.name} do not divide over tp={cut.tp}"


def _tp_kv_heads(shape: ModelShape, cut: Cut) -> str | None:
    heads = shape.kv_heads
    if shape.latent_attention is not None or heads % cut.tp == 0 or cut.tp % heads == 0:
        return None
    return f"the {heads} KV heads of {shape.name} neither divide tp={cut.tp} nor are divided by it"


@dataclass(frozen=True, slots=True)
class _Width:
    """One kind of MLP, and over how many ranks its width is cut."""

    name: str
    size: int
    ranks: int


def _widths(shape: ModelShape, cut: Cut) -> list[_Width]:
    """The routed experts and dense MLPs; shared experts are left to the engine."""
    widths = []
    if shape.dense_layers:
        widths.append(_Width("intermediate_size", shape.intermediate_size, cut.tp))
    if shape.experts is not None and cut.tp % cut.ep == 0:
        size = shape.experts.intermediate_size
        widths.append(_Width("moe_intermediate_size", size, cut.tp // cut.ep))
    return widths


def _tp_intermediate(shape: ModelShape, cut: Cut) -> str | None:
    bad = [
        f"{width.name} {width.size} of {shape.name} does not divide over {width.ranks} ranks"
        for width in _widths(shape, cut)
        if width.size % width.ranks
    ]
    return "; ".join(bad) or None


def _quant_block(shape: ModelShape, cut: Cut) -> str | None:
    block = shape.quantisation.block_size if shape.quantisation else None
    if block is None:
        return None
    bad = [
        f"{width.name} {width.size} of {shape.name} over {width.ranks} ranks gives shards of "
        f"{width.size // width.ranks}, not whole blocks of {block} scaled together"
        for width in _widths(shape, cut)
        if width.size % width.ranks == 0 and width.size // width.ranks % block
    ]
    return "; ".join(bad) or None


def _ep_tp(cut: Cut) -> str | None:
    if cut.tp % cut.ep == 0:
        return None
    return f"ep={cut.ep} does not divide tp={cut.tp}: experts are spread inside a TP group"


def _ep_dense(shape: ModelShape, cut: Cut) -> str | None:
    if cut.ep == 1 or shape.experts is not None:
        return None
    return f"{shape.name} has no experts that ep={cut.ep} could spread"


def _ep_experts(shape: ModelShape, cut: Cut) -> str | None:
    if shape.experts is None or shape.experts.count % cut.ep == 0:
        return None
    return f"the {shape.experts.count} experts of {shape.name} do not divide over ep={cut.ep}"


def _pp_layers(shape: ModelShape, cut: Cut) -> str | None:
    if cut.pp <= shape.layers:
        return None
    return f"pp={cut.pp} is more than the {shape.layers} layers of {shape.name}"


@dataclass(frozen=True, slots=True)
class _Fabric:
    gpus_per_node: int | None
    nvlink_domain: int | None

    def crossing(self, cut: Cut) -> str | None:
        """How a TP group leaves the fast links, if it does.

        Groups lie one after the other from the first GPU of a node and never across its end,
        unless one is larger than a node (`launcher.plan.layout`).
        """
        slots, domain, tp = self.gpus_per_node, self.nvlink_domain, cut.tp
        if slots is not None and tp > slots:
            return f"tp={tp} is more than the {slots} GPUs or slots used of a node"
        if domain is None or tp == 1:
            return None
        if tp > domain:
            return f"tp={tp} is more than the GPUs that NVLink joins ({domain})"
        if slots is not None and slots > domain and domain % tp:
            return f"groups of tp={tp} straddle the GPUs that NVLink joins ({domain})"
        return None


def _hint(rule: _Rule, rules: list[_Rule], cut: Cut, most: _Most) -> str:
    parts = [
        f"{knob} {_listed(values)}"
        for knob in rule.knobs
        if (values := _choices(rule, rules, knob, cut, most[knob]))
    ]
    if not parts:
        return "use a checkpoint of this model whose weights are not scaled by blocks"
    return f"choose {' or '.join(parts)}{rule.otherwise}"


def _choices(rule: _Rule, rules: list[_Rule], knob: _Knob, cut: Cut, most: int) -> list[int]:
    """Values of ``knob`` that satisfy every rule it can turn.

    Where other faults of the cut leave none, the knob that the rule is about is tried again:
    tp without expert parallelism, the others for this rule alone.
    """
    related = [r for r in rules if knob in r.knobs and (r.severity == "error" or r is rule)]
    again = (related, replace(cut, ep=1)) if knob == "tp" else ([rule], cut)
    trials = [(related, cut), again] if knob == rule.knobs[0] else [(related, cut)]
    for wanted, base in trials:
        tried = {value: replace(base, **{knob: value}) for value in range(1, most + 1)}
        if values := [v for v, c in tried.items() if not any(r.check(c) for r in wanted)]:
            return values
    return []


_MOST_LISTED = 4


def _listed(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if len(values) > _MOST_LISTED and values == list(range(1, len(values) + 1)):
        return f"from 1 to {len(values)}"
    return f"from {', '.join(map(str, values))}"
