"""Slurm's small languages: words, GRES and TRES, times, states.

What cannot be read is None; ``math.inf`` is "no limit".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from launcher.parsers.text import split_lines

__all__ = [
    "Gres",
    "JobRows",
    "NodeStates",
    "Tres",
    "gpus_in",
    "read_count",
    "read_expected_start",
    "read_gres",
    "read_job_rows",
    "read_job_state",
    "read_names",
    "read_node_states",
    "read_text",
    "read_time",
    "read_tres",
    "read_words",
]

JobRows: TypeAlias = tuple[tuple[str, str], ...]
_NOTHING = frozenset({"", "(null)", "N/A", "n/a", "None", "none", "NONE", "Unknown", "NOT_SET"})
_BOUNDLESS = {"UNLIMITED", "INFINITE"}
_CLOCK = re.compile(
    r"(?:(?P<d>[0-9]{1,9})-)?(?P<a>[0-9]{1,9})"
    r"(?::(?P<b>[0-9]{1,2}))?(?::(?P<c>[0-9]{1,2}))?(?:\.[0-9]{1,6})?"
)
_COUNT = re.compile(r"([0-9]{1,15})([KMGTP]?)")
# slurm, src/api/allocate.c, slurm_job_will_run. Dates that are none are left to who reads them.
_EXPECTED_START = re.compile(
    r"\bJob [0-9]{1,10} to start at"
    r" ((?:20|21)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9])(?![0-9])"
)
# Jobs, tasks of arrays (together while they wait), parts of heterogeneous jobs: squeue(1), %i.
_JOB_ROW = re.compile(r"\s*([0-9]+(?:_[^\s|]+|\+[0-9]+)?)\s*(?:\|(.*))?")
_MIG = re.compile(r"(?:^|[^a-z0-9])(?:[0-9]g[._-]?[0-9]+gb|mig)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gres:
    """One generic resource of a node, or of a request.

    Attributes
    ----------
    kind, type
        ``gpu`` and, if it is typed, such as ``nvidia_h100_80gb_hbm3``.
    """

    kind: str
    type: str | None
    count: int

    @property
    def mig(self) -> bool:
        """Whether these are parts of GPUs (``a100_3g.20gb``, ``a100-1g5gb``, ``h100_mig``)."""
        return self.type is not None and _MIG.search(self.type) is not None


@dataclass(frozen=True, slots=True)
class Tres:
    """Trackable resources, of a node or an allocation.

    Attributes
    ----------
    gpus
        None where GPUs are not named: that is no GPU, or a site that does not track them.
    gpu_types
        Counts by type, where types are tracked.
    entries
        All of them as they stand.
    """

    nodes: int | None
    gpus: int | None
    gpu_types: Mapping[str, int]
    entries: Mapping[str, str]


def read_text(text: str | None) -> str | None:
    """A text that says something."""
    return None if text in _NOTHING else text


def read_words(text: str | None) -> tuple[str, ...]:
    """Words between commas that say something."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip() not in _NOTHING)


def read_names(text: str | None) -> tuple[str, ...] | None:
    """As `read_words`, where nothing, and ``ALL``, means that there is no restriction."""
    found = read_words(text)
    return None if not found or "ALL" in (word.upper() for word in found) else found


def read_expected_start(text: str) -> str | None:
    """The time that ``sbatch --test-only`` names, without a zone; the last one if there are many.

    >>> read_expected_start("sbatch: Job 7 to start at 2026-11-23T14:00:00 using 8 processors on …")
    '2026-11-23T14:00:00'
    """
    found = _EXPECTED_START.findall(text)
    return found[-1] if found else None


def read_gres(text: str) -> tuple[Gres, ...]:
    """Read a GRES string of ``scontrol``, ``sinfo``, ``squeue`` or a request.

    >>> read_gres("gpu:h100:8(S:0-1)")[0].count
    8
    """
    if text.strip() in _NOTHING:
        return ()
    return tuple(found for part in _outside(text) if (found := _one_gres(part.strip())))


def gpus_in(gres: Iterable[Gres]) -> int:
    """How many GPUs, or parts of GPUs, are among them."""
    return sum(one.count for one in gres if one.kind == "gpu")


def _one_gres(text: str) -> Gres | None:
    words = re.sub(r"\(.*", "", text).removeprefix("gres/").removeprefix("gres:")
    kind, *rest = re.split(r"[:=]", words)
    rest = [word for word in rest if word != "no_consume"]
    last = _COUNT.fullmatch(rest[-1]) if rest else None
    count = int(last[1]) * 1024 ** " KMGTP".index(last[2] or " ") if last else 1
    types = rest[:-1] if last else rest
    if not re.fullmatch(r"\w[\w.-]*", kind) or len(types) > 1 or not all(types):
        return None
    return Gres(kind, types[0] if types else None, count)


def _outside(text: str) -> Iterator[str]:
    """``text`` at the commas that are in no brackets."""
    return (match[0] for match in re.finditer(r"(?:[^,(]|\([^)]*\)?)+", text))


def read_tres(text: str) -> Tres:
    """Read ``billing=9,cpu=9,gres/gpu:h100=1,gres/gpu=1,mem=60G,node=1``: that is one GPU."""
    pairs = (part.strip().partition("=") for part in text.split(","))
    entries = {key: value for key, equals, value in pairs if equals and key}
    types = {
        key.removeprefix("gres/gpu:"): count
        for key, value in entries.items()
        if key.startswith("gres/gpu:") and (count := read_count(value)) is not None
    }
    plain = read_count(entries.get("gres/gpu"))
    return Tres(
        nodes=read_count(entries.get("node")),
        # Those with a type count in gres/gpu already.
        gpus=plain if plain is not None else sum(types.values()) if types else None,
        gpu_types=types,
        entries=entries,
    )


def read_count(text: str | None) -> int | None:
    """A whole number; of ``512000+``, which stands for several, the least."""
    match = re.fullmatch(r"([0-9]{1,15})\+?", (text or "").strip())
    return int(match[1]) if match else None


def read_time(text: str) -> float | None:
    """Seconds in ``1-00:00:00``, ``1:30:00``, ``30:00`` or ``45`` (minutes); inf for no limit.

    ``INVALID``, ``Partition_Limit``, ``N/A`` and the like are None.
    """
    word = text.strip()
    if word.upper() in _BOUNDLESS:
        return math.inf
    match = _CLOCK.fullmatch(word)
    if match is None:
        return None
    numbers = [int(n) for n in (match["a"], match["b"], match["c"]) if n is not None]
    if match["d"] is not None:  # D-HH, D-HH:MM, D-HH:MM:SS
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return int(match["d"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 1:
        return numbers[0] * 60
    hours, minutes, seconds = (0, *numbers)[-3:]
    return hours * 3600 + minutes * 60 + seconds


# Marks behind a state, by sinfo(1), "NODE STATE CODES".
_MARKS = {
    "*": "NOT_RESPONDING",
    "~": "POWERED_DOWN",
    "#": "POWERING_UP",
    "!": "POWER_DOWN",
    "%": "POWERING_DOWN",
    "$": "MAINTENANCE",
    "@": "REBOOT_REQUESTED",
    "^": "REBOOT_ISSUED",
    "-": "PLANNED",
}
_STATES: Mapping[str, tuple[str, ...]] = {
    "ALLOC": ("ALLOCATED",),
    "ALLOCATED": ("ALLOCATED",),
    "MIX": ("MIXED",),
    "BLOCK": ("BLOCKED",),
    "COMP": ("COMPLETING",),
    "DRAIN": ("DRAIN",),
    "DRAINED": ("IDLE", "DRAIN"),
    "DRAINING": ("ALLOCATED", "DRAIN"),
    "DRNG": ("ALLOCATED", "DRAIN"),
    "FAILG": ("ALLOCATED", "FAIL"),
    "FAILING": ("ALLOCATED", "FAIL"),
    "FUTR": ("FUTURE",),
    "MAINT": ("MAINTENANCE",),
    "PLND": ("PLANNED",),
    "RESV": ("RESERVED",),
    "UNK": ("UNKNOWN",),
    "BOOT": ("REBOOT_ISSUED",),
    "POW_DN": ("POWERING_DOWN",),
    "POW_UP": ("POWERING_UP",),
}
_BASES = ("DOWN", "ERROR", "FUTURE", "UNKNOWN", "MIXED", "ALLOCATED", "IDLE")
# Flags that sinfo prints in the place of IDLE.
_INSTEAD = {"BLOCKED", "PLANNED"}
_UNUSABLE = {
    "DRAIN",
    "FAIL",
    "INVAL",
    "INVALID_REG",
    "MAINTENANCE",
    "NOT_RESPONDING",
    "REBOOT_ISSUED",
    "REBOOT_REQUESTED",
    "UNDRAIN",
}


@dataclass(frozen=True, slots=True)
class NodeStates:
    """State of a node: its base state, if one was told, and its flags."""

    base: str | None
    flags: frozenset[str]

    @property
    def usable(self) -> bool:
        """Whether jobs can be put there now or once others have left."""
        return self.base in {"IDLE", "ALLOCATED", "MIXED"} and not self.flags & _UNUSABLE


def read_node_states(text: str) -> NodeStates:
    """Read ``MIXED+PLANNED``, ``DOWN*+CLOUD``, ``idle~`` or ``drng``."""
    words: set[str] = set()
    for part in text.upper().split("+"):
        name = part.strip().rstrip("".join(_MARKS))
        words.update(_MARKS[mark] for mark in part.strip()[len(name) :])
        words.update(_STATES.get(name, (name,)) if name else ())
    instead = "IDLE" if words & _INSTEAD else None
    base = next((state for state in _BASES if state in words), instead)
    return NodeStates(base, frozenset(words - set(_BASES)))


def read_job_rows(text: str) -> JobRows:
    r"""Ids and what is behind them in ``squeue -h -o '%i|%T'`` or ``sacct -X -n -P``.

    Lines that name no job, such as those of a wrapper or of a step, are left out.

    >>> read_job_rows("12|RUNNING\n13_[0-3%2]|PENDING\n14+0|CANCELLED by 1000\n")
    (('12', 'RUNNING'), ('13_[0-3%2]', 'PENDING'), ('14+0', 'CANCELLED by 1000'))
    """
    rows = map(_JOB_ROW.fullmatch, split_lines(text).lines)
    return tuple((row[1], (row[2] or "").strip()) for row in rows if row)


def read_job_state(text: str) -> str:
    """The base word of ``CANCELLED by 1000``, ``COMPLETED+`` or ``RUNNING``; "" for nothing."""
    words = re.split(r"[\s+,]", text.strip(), maxsplit=1)
    return words[0].upper()
