"""Who works on which unit: one lease a unit, taken by `link` alone.

A lease is a file ``leases/u<unit>.g<generation>`` that names its worker. The next generation
may be taken once that worker is dead: provably (same host, process gone, or it said so), or
because its heartbeat's counter stood still for `TTL_S` of the observer's own clock. A wrong
guess costs work, never correctness: parts are created once, whoever comes first.

A worker can begin some rows of a unit and leave the others to whoever comes: the next generation
then belongs to nobody, and names the rows that were begun (`Leases.share`).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

from launcher.data.wal import Key
from launcher.process import ProcessIds
from launcher.rundir import RunDir, claim, replace

__all__ = ["Heartbeat", "Leases"]

BEAT_S = 5.0
TTL_S = 60.0
# What a lease that is nobody's begins with; no worker's name does.
_SHARED = "shared "


class Heartbeat:
    """Rewrites ``workers/<name>.hb`` with a rising counter until it is released."""

    def __init__(self, run: RunDir, worker: str) -> None:
        self._path = run.path / "workers" / f"{worker}.hb"
        self._ids = asdict(ProcessIds.of(os.getpid()))
        self._counter = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._write()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # as below; and how the work ended is worth more
            self._write()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            # A full disk now may have room at the next beat; a missed one costs no row.
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        self._counter += 1
        released = self._released.is_set()
        state = {"counter": self._counter, "released": released, "process": self._ids}
        replace(self._path, json.dumps(state).encode(), sync=False)


@dataclass
class Leases:
    """The leases of one pass over a run's input, as one worker sees and takes them.

    Attributes
    ----------
    overlay
        Which pass; see `RunDir.pass_path`.
    clock
        Monotonic seconds; no time of another machine is ever compared with it.
    """

    run: RunDir
    worker: str
    overlay: int = 0
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def claim(self, unit: int, most_shared: int | None = None) -> int | None:
        """Take ``unit`` unless another worker has it that may still live.

        A lease of this worker itself is one that it has given up.

        Parameters
        ----------
        most_shared
            Take no unit that was shared more often than this; None takes it however often.

        Returns
        -------
        int or None
            The generation of the lease.
        """
        generation, shared, owner = 1, 0, _SHARED
        while True:
            path = self.run.lease_path(unit, generation, self.overlay)
            # Only `claim` decides; but one that is refused makes two files, and a look none.
            if not path.exists():
                if self._holds(owner) or (most_shared is not None and shared > most_shared):
                    return None
                if claim(path, self.worker.encode()):
                    return generation
            owner = path.read_text()
            shared += owner.startswith(_SHARED)
            generation += 1

    def _holds(self, owner: str) -> bool:
        """Whether the last lease of a unit is another worker's that may still live."""
        return not (owner.startswith(_SHARED) or owner == self.worker or self.dead(owner))

    def share(self, unit: int, generation: int, begun: Iterable[Key]) -> None:
        """Let others have ``unit``, which this worker holds, but for the rows of ``begun``."""
        rows = json.dumps(list(begun), separators=(",", ":"))
        claim(self.run.lease_path(unit, generation + 1, self.overlay), (_SHARED + rows).encode())

    def elsewhere(self, unit: int, generation: int) -> Mapping[Key, str]:
        """Rows of ``unit`` that workers have begun who shared it before, and may still live.

        Returns
        -------
        mapping
            From each row to its worker, which may be this one.
        """
        found: dict[Key, str] = {}
        owner = ""
        for earlier in range(1, generation):
            text = self.run.lease_path(unit, earlier, self.overlay).read_text()
            if text.startswith(_SHARED) and not self.dead(owner):
                with contextlib.suppress(ValueError):  # lost in a crash: these rows are redone
                    for file, offset in json.loads(text.removeprefix(_SHARED)):
                        found[file, offset] = owner
            owner = text
        return found

    def dead(self, owner: str) -> bool:
        """Whether ``owner`` is over, as far as this worker has seen by now."""
        if owner == self.worker:
            return False
        counter, over = self._heartbeat(owner)
        if over or _earlier_start(owner, self.worker):
            return True
        last, since = self._seen.get(owner, (None, 0.0))
        if last != counter:
            self._seen[owner] = (counter, self.clock())
            return False
        return self.clock() - since > TTL_S

    def _heartbeat(self, owner: str) -> tuple[int, bool]:
        """The counter, and whether the worker is provably over."""
        try:
            state = json.loads((self.run.path / "workers" / f"{owner}.hb").read_bytes())
            over = state["released"] or ProcessIds(**state["process"]).gone()
            return int(state["counter"]), over
        except (OSError, ValueError, KeyError, TypeError):
            return -1, False  # unreadable is not dead: the counter's clock decides


def _earlier_start(owner: str, worker: str) -> bool:
    """Whether ``owner`` worked in an earlier start of the job that ``worker`` works in.

    A job that was requeued, perhaps because its node died, has ended there; names begin with
    the job and how often it was requeued (`launcher.runner.identity.worker_name`).
    """
    theirs, ours = owner.split("."), worker.split(".")
    numbered = len(theirs) == len(ours) > 2 and theirs[1].isdigit() and ours[1].isdigit()  # noqa: PLR2004 - job, restart and more
    return numbered and theirs[0] == ours[0] and int(theirs[1]) < int(ours[1])
