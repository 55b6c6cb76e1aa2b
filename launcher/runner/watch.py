"""What the processes of one rank have printed so far, and whether it tells that they are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.engines.tensorrt_llm_causes import Cause, cause, is_echo
from launcher.engines.tensorrt_llm_marks import PHASES, ending_s, figure, phase_after, plain
from launcher.errors import Problem

__all__ = ["Fault", "Watch", "deadlines_s"]

# A phase that is over its time but still prints is left alone, until all phases' times are over:
# the line that ends it may read otherwise in another version.
QUIET_S = 120.0
_LONGEST_LINE = 4096
_GIB = 1 << 30
# Seconds. Nothing is lost but time where they are too long; one that is too short ends a start
# that would have worked. Autotuning and CUDA graphs have taken 15 minutes on cold caches.
_LIMITS_S = {"mpi": 900.0, "load": 900.0, "profile": 2400.0, "kv": 900.0, "graphs": 2400.0}
# A cold parallel file system that every node reads the whole checkpoint from.
_LOAD_S_PER_GIB = 12.0
_DOING = {
    "mpi": "until its processes met",
    "load": "to load the weights",
    "profile": "to try the largest batch",
    "kv": "to take its KV cache",
    "graphs": "to warm up",
}


def deadlines_s(model_path: str | None, patience: float = 1.0) -> dict[str, float]:
    """How long each phase of a start may take, by the size of the checkpoint.

    Parameters
    ----------
    patience
        A factor for all of them.
    """
    size_gib = _size_bytes(model_path) / _GIB
    limits_s = dict(_LIMITS_S)
    limits_s["load"] += _LOAD_S_PER_GIB * size_gib
    return {phase: limit_s * patience for phase, limit_s in limits_s.items()}


def _size_bytes(model_path: str | None) -> int:
    if model_path is None:
        return 0
    weights = (p for kind in ("*.safetensors", "*.bin") for p in Path(model_path).glob(kind))
    return sum(path.stat().st_size for path in weights)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the processes of this rank are to be killed.

    Attributes
    ----------
    echo
        It only tells that something else has failed.
    """

    problem: Problem
    echo: bool = False


class Watch:
    """Hears every line, in whatever thread, and is asked now and then.

    Parameters
    ----------
    who
        The rank and its node, for messages.
    several
        Whether the replica has several ranks.
    limits_s
        See `deadlines_s`; of a rank that does not see the whole start none.

    Attributes
    ----------
    phase
        Of `launcher.engines.tensorrt_llm_marks.PHASES`.
    last
        The last line, plain.
    figures
        What `launcher.engines.tensorrt_llm_marks.figure` found, the last of each.
    alarm
        Set by a line after which this process may not have another tenth of a second.
    """

    def __init__(
        self,
        who: str,
        *,
        several: bool,
        limits_s: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phase = PHASES[0]
        self.last = ""
        self.figures: dict[str, int] = {}
        self.alarm = threading.Event()
        self._who, self._several, self._clock = who, several, clock
        self._limits_s = dict(limits_s or {})
        self._began_s = self._phase_s = self._heard_s = clock()
        self._cause: Cause | None = None
        self._echo: str | None = None
        self._ends_s: float | None = None
        self._changing = threading.Lock()

    def hear(self, line: str) -> None:
        text = plain(line[:_LONGEST_LINE])
        if not text:
            return
        with self._changing:
            self.last, self._heard_s = text, self._clock()
            self._follow(text)
            found = cause(text)
            if found and (self._cause is None or found.order < self._cause.order):
                self._cause = found
            if self._echo is None and is_echo(text):
                self._echo = text
            wait_s = ending_s(text, several=self._several)
            if wait_s is not None:
                ends_s = self._heard_s + wait_s
                self._ends_s = ends_s if self._ends_s is None else min(ends_s, self._ends_s)
                if wait_s == 0:
                    self.alarm.set()

    def settled_figures(self) -> dict[str, int]:
        """`figures` once they are those of the real KV cache."""
        with self._changing:
            return dict(self.figures) if PHASES.index(self.phase) >= PHASES.index("kv") else {}

    def fault(self) -> Fault | None:
        """Why there is no hope left, as far as lines and the time tell."""
        with self._changing:
            now_s = self._clock()
            if self._ends_s is not None and now_s >= self._ends_s:
                return self._told() or self._unexplained()
            return self._stalled(now_s)

    def death(self, how: str, *, killed: bool) -> Fault:
        """What to say of a process that has ended; ``how`` is all that is known of it otherwise.

        Parameters
        ----------
        killed
            Whether a signal ended it, which exceptions that were caught before do not explain.
        """
        with self._changing:
            told = self._told(certain=killed)
        if told is not None and not told.echo:
            return told
        hint = "look at the end of the step's log; SIGKILL is often the kernel being out of memory"
        problem = Problem("run.died", f"{self._who}: {how}", hint=hint)
        return Fault(problem, echo=told is not None or not killed)

    def _follow(self, text: str) -> None:
        phase = phase_after(self.phase, text)
        if phase != self.phase:
            self.phase, self._phase_s = phase, self._heard_s
            if phase == "kv":  # until then those of the small KV cache
                self.figures.clear()
            if phase == "ready":  # with what was said until then it has started
                self._cause = self._echo = None
        if found := figure(text):
            self.figures[found[0]] = found[1]

    def _told(self, *, certain: bool = False) -> Fault | None:
        found = self._cause
        if found is not None and not (certain and found.guessed):
            return Fault(Problem(found.code, f"{self._who}: {found.what}", hint=found.hint))
        if self._echo is None:
            return None
        hint = "see the step's log for what other ranks say"
        return Fault(Problem("engine.died", f"{self._who}: {self._echo}", hint=hint), echo=True)

    def _unexplained(self) -> Fault:
        return Fault(Problem("engine.died", f"{self._who}: {self.last}", hint="see the step's log"))

    def _stalled(self, now_s: float) -> Fault | None:
        limit_s = self._limits_s.get(self.phase)
        if limit_s is None:
            return None
        took_s = now_s - self._phase_s
        whole_s = sum(self._limits_s.values())
        prints = now_s - self._heard_s < min(QUIET_S, limit_s)
        if took_s <= limit_s or (prints and now_s - self._began_s <= whole_s):
            return None
        message = (
            f"{self._who}: {took_s:.0f} s were not enough {_DOING[self.phase]} "
            f"(phase {self.phase}, {limit_s:.0f} s at most); the last line was: {self.last}"
        )
        hint = "see the step's log; where it is only slow, set HPC_LLM_PATIENCE=3 in env"
        return Fault(Problem("run.stalled", message, hint=hint))
