"""The kinds of node in a partition: alike in their GPUs, and told apart by what a job may say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.describe.gpus import hardware_words, read_gpu_name
from launcher.parsers.slurm_nodes import Node

__all__ = ["Kind", "Nodes", "kinds_of"]

# With anything else in it, --constraint would take it for an expression (sbatch(1)).
_FEATURE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)

_NEAR = 1.1  # sizes of memory that are the same but for what each node keeps


@dataclass(frozen=True, slots=True)
class Kind:
    """Nodes with the same GPUs.

    Attributes
    ----------
    gpus
        GRES types and how many each node has; parts of GPUs are not among them.
    parts
        Whether some of the GPUs are given in parts (MIG).
    constraint
        A feature that these nodes have and no others of the partition; None where the type of
        GPU tells them apart, or nothing has to.
    alike
        Whether one of the nodes speaks for the others: the same CPUs, nearly the same memory,
        and the same features where their type of GPU is not the name of a model.
    mixed
        Whether there are others with the same type of GPU that no request tells apart.
    """

    gpus: tuple[tuple[str | None, int], ...]
    parts: bool
    nodes: tuple[Node, ...]
    constraint: str | None = None
    alike: bool = False
    mixed: bool = False

    @property
    def types(self) -> frozenset[str | None]:
        return frozenset(type_ for type_, _ in self.gpus)

    @property
    def common(self) -> frozenset[str]:
        """Features that all of them have."""
        return frozenset.intersection(*(frozenset(node.features) for node in self.nodes))


def kinds_of(nodes: Sequence[Node]) -> list[Kind]:
    """The kinds among ``nodes``, those with GPUs first; nodes that are only planned are none."""
    found: dict[object, list[Node]] = {}
    for node in nodes:
        if node.states.base != "FUTURE":
            found.setdefault((_gpus(node), hardware_words(node.features)), []).append(node)
    kinds = [Kind(*_gpus(of[0]), nodes=tuple(of), alike=_alike(of)) for of in found.values()]
    marked = [replace(kind, constraint=_constraint(kind, kinds)) for kind in kinds]
    merged = [_merged(kind, marked) for kind in marked]
    once = [kind for index, kind in enumerate(merged) if kind not in merged[:index]]
    return sorted(once, key=lambda kind: not kind.gpus)


def _gpus(node: Node) -> tuple[tuple[tuple[str | None, int], ...], bool]:
    gpus = [one for one in node.gres if one.kind == "gpu" and one.count]
    whole: dict[str | None, int] = {}
    for one in gpus:
        if not one.mig:
            whole[one.type] = whole.get(one.type, 0) + one.count
    return tuple(sorted(whole.items(), key=str)), any(one.mig for one in gpus)


def _alike(nodes: Sequence[Node]) -> bool:
    shapes = ("arch", "cpus", "sockets", "cores_per_socket", "threads_per_core")
    told = [{getattr(node, name) for node in nodes} - {None} for name in shapes]
    types = [one.type for one in nodes[0].gres if one.kind == "gpu"]
    named = bool(types) and all(read_gpu_name(type_ or "") for type_ in types)
    same = named or len({frozenset(node.features) for node in nodes}) == 1
    memory = [node.memory_bytes for node in nodes if node.memory_bytes]
    near = not memory or max(memory) <= _NEAR * min(memory)
    return same and near and all(len(values) <= 1 for values in told)


def _rivals(kind: Kind, kinds: Sequence[Kind]) -> list[Kind]:
    """Others that would be given to whom asks for this kind's type of GPU."""
    untyped = None in kind.types
    return [
        other
        for other in kinds
        if other is not kind
        and (
            other.types & kind.types
            or (untyped and (other.gpus or other.parts))
            or not (other.gpus or kind.gpus)
        )
    ]


def _constraint(kind: Kind, kinds: Sequence[Kind]) -> str | None:
    rivals = _rivals(kind, kinds)
    taken = {feature for other in rivals for node in other.nodes for feature in node.features}
    own = set(filter(_FEATURE.fullmatch, kind.common - taken))
    speaking = own & hardware_words(tuple(own)) or own
    return min(speaking, key=lambda name: (len(name), name)) if rivals and speaking else None


def _merged(kind: Kind, kinds: Sequence[Kind]) -> Kind:
    """``kind`` with all that cannot be told from it; mixed where their GPUs differ."""
    others = [] if kind.constraint else _rivals(kind, kinds)
    if not others:
        return kind
    nodes = [node for one in kinds if one is kind or one in others for node in one.nodes]
    mixed = any((other.gpus, other.parts) != (kind.gpus, kind.parts) for other in others)
    return replace(kind, nodes=tuple(nodes), alike=False, mixed=mixed)


@dataclass(frozen=True, slots=True)
class Nodes:
    """One partition of the site file.

    Attributes
    ----------
    partition
        Slurm's name for it.
    alone
        Whether the partition has no other kind.
    whole
        What says that its nodes are given as a whole; None where nothing does.
    """

    partition: str
    kind: Kind
    alone: bool
    whole: str | None
