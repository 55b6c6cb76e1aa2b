"""What is wrong with names in ``engine_options``, told with the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Complaint", "Names"]

# Alike enough to be meant, and not an option that a later version brought.
_ALIKE = 0.8


class Complaint(NamedTuple):
    """What is wrong with one option.

    ``owned``: the plan decides it, whatever its value. ``sure``: it is wrong for versions that
    came after those that are known, too.
    """

    option: str
    message: str
    hint: str
    owned: bool = False
    sure: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that one engine's users write.

    Attributes
    ----------
    owned
        What the plan decides, and what to do about it, such as ``set parallelism.tp``: given
        twice, the two could disagree. Empty where nothing can be done but to leave it out.
    meant
        Names of other engines and of other places, which are no near spelling of the right one,
        and what to do in their place.
    kind
        What all options are, in words, such as ``a field of vLLM's EngineArgs``.
    """

    owned: Mapping[str, str]
    meant: Mapping[str, str]
    kind: str

    def complaints(
        self, given: Iterable[str], known: Collection[str], where: str
    ) -> list[Complaint]:
        """What is wrong with the names of options.

        Parameters
        ----------
        given
            Names in ``engine_options``.
        known
            Those that the engine takes.
        where
            The engine that takes them, in words, such as ``vLLM 0.24.0``.
        """
        found = []
        for name in given:
            if name in self.owned:
                message = f"engine option `{name}` is derived from the plan"
                better = self.owned[name]
                hint = f"remove it and {better}" if better else "remove it"
                found.append(Complaint(name, message, hint, owned=True))
            elif name not in known:
                message = f"{where} has no engine option {name!r}"
                hint, sure = self._instead(name, known)
                found.append(Complaint(name, message, hint, sure=sure))
        return found

    def _instead(self, name: str, known: Collection[str]) -> tuple[str, bool]:
        """What to do, and whether that is surely what is meant."""
        plain = name.lstrip("-").replace("-", "_").lower()
        if plain in known:
            return f"write {plain}", True
        if plain in self.meant:
            return self.meant[plain], True
        free = set(known) - self.owned.keys()
        if near := difflib.get_close_matches(plain, free, n=1, cutoff=_ALIKE):
            return f"write {near[0]}", True
        near = difflib.get_close_matches(plain, free, n=1)
        return (f"write {near[0]}" if near else f"use {self.kind}"), False
