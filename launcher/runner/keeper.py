"""The engine of a replica, and the next one when it dies."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.engines.base import Capabilities, Engine
from launcher.errors import RunError

__all__ = ["EngineKeeper"]

# A minute of work pays for a start; who dies sooner, and again, dies of something else.
_MOST_IN_A_ROW = 3


class EngineKeeper:
    """Starts engines.

    Parameters
    ----------
    name
        Of the engine, for the log.
    make
        A new one, not yet started.
    restarts
        How many may follow the first. None can where it has ranks in other processes, which
        end with it.
    say
        Takes a line for the step's log.

    Attributes
    ----------
    restarted
        How many have followed the first so far.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Engine],
        *,
        restarts: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._name = name
        self._make = make
        self._say = say
        self._left = restarts
        self.restarted = 0
        self._in_a_row = 0
        self._first: RunError | None = None
        self.engine = make()

    async def start(self) -> Capabilities:
        """Start the engine; raises what it raises."""
        started_s = time.monotonic()
        self.capabilities = await self.engine.start()
        if not self.capabilities.replaceable:
            self._left = 0
        took_s = time.monotonic() - started_s
        window, version = self.capabilities.max_in_flight, self.capabilities.version
        of = f" (version {version})" if version else ""
        self._say(f"engine {self._name} is ready after {took_s:.1f} s, window {window}{of}")
        return self.capabilities

    def mends(self, died: RunError) -> bool:
        """Whether another engine may be started after ``died``."""
        return self._left > 0 and all(p.code == "engine.died" for p in died.problems)

    async def replace(self, died: RunError, *, progress: bool) -> None:
        """Start another engine in the place of a closed one.

        Parameters
        ----------
        progress
            Whether a row was finished since the last start.

        Raises
        ------
        RunError
            When several in a row have done nothing, what the first of them died of; what the new
            engine raises.
        """
        self._in_a_row = 1 if progress else self._in_a_row + 1
        if self._first is None or progress:
            self._first = died
        if self._in_a_row > _MOST_IN_A_ROW:
            raise self._first
        self._left -= 1
        self.restarted += 1
        self._say(f"{died}; it is started again, {self._left} more times at most")
        self.engine = self._make()
        await self.start()

    async def close(self) -> None:
        await self.engine.close()
