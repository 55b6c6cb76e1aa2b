"""Facts as the text of a site file: each value with what said so behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from launcher.describe.facts import Fact, Facts, Place
from launcher.errors import printable

__all__ = ["write_site"]

# Keys in the order of the reference, docs/reference/site-file.md.
_ORDER = (
    *(
        "schema",
        "name",
        "cluster_name",
        "node_local",
        "detect",
        "scheduler",
        "launch",
        "container",
        "scratch",
        "internet",
    ),
    *("type", "version", "max_array_size", "reject", "restart", "with", "mpi", "runtime"),
    *("command", "nodes", "select", "partition", "constraint", "time_limit", "limits", "qos"),
    *("min_time", "min_nodes", "max_nodes", "min_gpus", "max_gpus", "jobs_running"),
    *("jobs_queued", "cpus", "count", "arch", "threads_per_core", "memory", "gpus", "model"),
    *("per_node", "link", "links", "topology", "request", "unit", "fabric", "rate", "nics"),
    *("rails", "interface", "partitions"),
)
_OF_GPUS = ("model", "memory", "per_node", "link", "links", "topology", "request", "unit", "cpus")
_TIMES = {"time_limit", "min_time"}
_UNITS = (("TB", 10**12), ("GB", 10**9), ("GiB", 2**30), ("MiB", 2**20), ("B", 1))
_NAMED = {"partitions", "qos"}  # sections whose keys are names


def write_site(name: str, facts: Facts) -> str:
    """The text; questions and notes are in its head.

    Parameters
    ----------
    facts
        Settled ones.
    """
    tree: dict[str, Any] = {"schema": 1, "name": name}
    for place, fact in facts.known.items():
        section = tree
        for key in place[:-1]:
            section = section.setdefault(key, {})
        if fact.value != {}:
            section[place[-1]] = fact
        else:
            section.setdefault(place[-1], {})
    if not tree.get("partitions"):
        tree["partitions"] = {"default": {"select": {"partition": "none"}}}
    return "\n".join([*_head(name, facts), *_section(tree, ())]) + "\n"


def _head(name: str, facts: Facts) -> Iterator[str]:
    yield f"# {printable(name)}, by `hpc-llm site discover`: behind each value what said so."
    if facts.questions:
        yield "# Not known:"
    for places, question in facts.asked():
        yield f"# - {printable(places)}: {printable(question)}"
    if facts.notes:
        yield "# Left out, or to be looked at:"
    for note in dict.fromkeys(facts.notes):
        yield f"# - {printable(note)}"


def _section(tree: Mapping[str, Any], at: Place) -> Iterator[str]:
    pad = "  " * len(at)
    named = bool(at) and at[-1] in _NAMED
    order = _OF_GPUS if set(tree) <= {*_OF_GPUS} else _ORDER
    for key in tree if named else sorted(tree, key=order.index):
        value = tree[key]
        if isinstance(value, Fact):
            yield from _leaf(pad, key, value)
        elif isinstance(value, dict) and value:
            yield f"{pad}{_scalar(key)}:"
            yield from _section(value, (*at, key))
        else:
            yield f"{pad}{_scalar(key)}: {value if value == {} else _scalar(value)}"


def _leaf(pad: str, key: str, fact: Fact) -> Iterator[str]:
    source = f" # {printable('; '.join(fact.sources))}"
    if key == "rails":
        yield f"{pad}{key}:{source}"
        yield from (f"{pad}  - {_flow(rail)}" for rail in fact.value)
    else:
        yield f"{pad}{key}: {_flow(_with_unit(key, fact.value))}{source}"


def _with_unit(key: str, value: Any) -> Any:
    if key in _TIMES:
        return _duration(value)
    return _size(value) if key == "memory" else value


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_scalar(k)}: {_flow(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _scalar(value)


def _scalar(value: object) -> str:
    """Plain where YAML cannot take it for anything else, else in double quotes."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    plain = re.fullmatch(r"(?![0-9]+-)[A-Za-z0-9$/][\w./$-]*", value, re.ASCII)
    if plain and yaml.safe_load(value) == value:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', width=float("inf"))
    return quoted.strip()


def _duration(seconds: int) -> str:
    parts = (
        (seconds // 86400, "d"),
        (seconds // 3600 % 24, "h"),
        (seconds // 60 % 60, "m"),
        (seconds % 60, "s"),
    )
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def _size(count: int) -> str:
    unit, size = next((unit, size) for unit, size in _UNITS if count % size == 0)
    return f"{count // size}{unit}"
