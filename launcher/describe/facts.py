"""What has been learnt, from whom, and what is still to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from launcher.parsers.text import ParseError

__all__ = ["Fact", "Facts", "Place", "spoken_place"]

# Keys from the top of the site file, such as ("scheduler", "version").
Place = tuple[str, ...]
T = TypeVar("T")
# Sections that are no section without these keys.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "cpus": ("count",),
    "gpus": ("model", "per_node"),
    "fabric": ("type",),
    "topology": ("type", "nodes"),
}
_PARTITION_SECTION = 4  # partitions, its name, the section, the key


@dataclass(frozen=True, slots=True)
class Fact:
    """A value of the site file, and what said so."""

    value: Any
    sources: tuple[str, ...]


@dataclass(slots=True)
class Facts:
    """Facts by their place in the site file.

    Attributes
    ----------
    questions
        What is not known, and what would tell it, by place.
    notes
        What was left out, and why.
    """

    known: dict[Place, Fact] = field(default_factory=dict)
    questions: dict[Place, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _disputed: dict[Place, list[str]] = field(default_factory=dict)

    def say(self, place: Place, value: object, source: str) -> None:
        """Take ``value`` unless another source says otherwise: then nothing is known."""
        claim = f"{source} says {value}"
        if value is None:
            return
        if not claim.isprintable():
            self.ask(place, f"{claim}: what no site file may hold")
            return
        if place in self._disputed:
            self._disputed[place].append(claim)
        elif (old := self.known.get(place)) is None:
            self.known[place] = Fact(value, (source,))
        elif old.value == value:
            self.known[place] = Fact(value, tuple(dict.fromkeys((*old.sources, source))))
        else:
            del self.known[place]
            self._disputed[place] = [f"{' and '.join(old.sources)} says {old.value}", claim]

    def ask(self, place: Place, question: str) -> None:
        """Note what would tell the value at ``place``, in case that nothing does.

        Who asks last has heard most.
        """
        self.questions[place] = question

    def value(self, place: Place) -> Any:
        """What is known there, or None."""
        fact = self.known.get(place)
        return fact.value if fact else None

    def read(self, captures: Mapping[str, str], name: str, reader: Callable[[str], T]) -> T | None:
        """The capture of that name as ``reader`` has it; None where there is none or another."""
        text = captures.get(name)
        if text is None or not text.strip():
            return None
        try:
            return reader(text)
        except ParseError as exc:
            self.notes.append(f"{name} was not read: {exc}")
            return None

    def settled(self) -> Facts:
        """The same without sections that lack what they need, and without answered questions."""
        known, questions = dict(self.known), {}
        for place, claims in self._disputed.items():
            questions[place] = f"{'; '.join(claims)}: which is right?"
        for section, lacking in self._lacking():
            # Rails name GPUs by index.
            rails = (*section[:2], "fabric", "rails") if section[2] == "gpus" else section
            for place, fact in self.known.items():
                if place[: len(section)] == section or place == rails:
                    known.pop(place, None)
                    told = f"{fact.value}, says {' and '.join(fact.sources)}"
                    questions.setdefault(place, f"{told}: of use with `{lacking}`")
        for place, question in self.questions.items():
            if not any(other[: len(place)] == place for other in known):
                questions.setdefault(place, question)
        return Facts(known, questions, self.notes, self._disputed)

    def forget(self, section: Place) -> None:
        """Take a section out; what its sources disagree about is still asked."""
        for places in (self.known, self.questions):
            for place in [one for one in places if one[: len(section)] == section]:
                if places is self.known or place not in self._disputed:
                    del places[place]

    def asked(self) -> list[tuple[str, str]]:
        """Each question once, behind all that it is about."""
        about: dict[str, list[Place]] = {}
        for place, question in sorted(self.questions.items()):
            about.setdefault(question, []).append(place)
        return [(_together(places), question) for question, places in about.items()]

    def _lacking(self) -> Iterator[tuple[Place, str]]:
        """Sections without what they need; rails are as good as a section of GPUs."""
        begun = {
            (*place[:2], "gpus" if place[2:] == ("fabric", "rails") else place[2])
            for place in self.known
            if len(place) >= _PARTITION_SECTION and place[0] == "partitions"
        }
        for section in sorted(begun):
            needed = _NEEDED.get(section[2], ())
            lacking = [key for key in needed if (*section, key) not in self.known]
            if lacking:
                yield section, lacking[0]


def _together(places: list[Place]) -> str:
    """``partitions.gpu: fabric, gpus.link`` for several of one section."""
    first, *others = map(spoken_place, places)
    if not others:
        return first
    section, size = spoken_place(places[0][:2]), len(places[0][:2])
    if all(place[:2] == places[0][:2] for place in places):
        return f"{section}: {', '.join(spoken_place(place[size:]) for place in places)}"
    return ", ".join((first, *others))


def spoken_place(place: Place) -> str:
    """As error messages name it: ``partitions.gpu.cpus``."""
    return ".".join(place)
