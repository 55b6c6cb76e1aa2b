"""Reading single values of a ``config.json``, collecting everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.errors import Problem, SpecError

__all__ = ["Keys"]

_AGAIN = "or take config.json from the publisher again"


class Keys:
    """The values of one mapping in a config. A ``null`` is absent, as transformers reads it.

    Where a value is missing or ill-typed a stand-in is given and a problem is kept; `refuse`
    raises before anybody uses the stand-in.

    Attributes
    ----------
    values
        The values by key, without nulls.
    problems
        ``model.config``, one for each key that is wrong; shared with every `section`.
    """

    def __init__(self, name: str, values: Mapping[str, Any], within: str = "") -> None:
        self.name = name
        self.values = {key: value for key, value in values.items() if value is not None}
        self.problems: list[Problem] = []
        self._within = within

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def refuse(self) -> None:
        """Raise `SpecError` with all problems so far, if there are any."""
        if self.problems:
            raise SpecError(self.problems)

    def lacks(self, *names: str) -> None:
        """Keep the problem that none of ``names`` is there."""
        self._keep(
            f"lacks {self._within}{' or '.join(names)}",
            "point model at a whole checkpoint in the Hugging Face format",
        )

    def wrong(self, key: str, expected: str) -> None:
        """Keep the problem that the value of ``key`` is not what was ``expected``."""
        full = self._within + key
        what = f"has {full} = {self.values[key]!r}, not {expected}"
        self._keep(what, f"correct {full}, {_AGAIN}")

    def number(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of ``names`` that is there, or ``default``; required without one."""
        key = self._first(names)
        if key is not None:
            return self._checked(key, least)
        if default is None:
            self.lacks(*names)
        return least if default is None else default

    def optional(self, *names: str) -> int | None:
        """The first of ``names`` that is there, at least 1, or None."""
        key = self._first(names)
        return None if key is None else self._checked(key, 1)

    def flag(self, key: str) -> bool:
        """A boolean that is false where it is absent."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value is True

    def text(self, *names: str) -> str | None:
        """The first of ``names`` that is there, or None."""
        key = self._first(names)
        if key is None:
            return None
        if not isinstance(self.values[key], str):
            self.wrong(key, "text")
        return str(self.values[key])

    def items(self, key: str, kind: type) -> tuple[Any, ...]:
        """The entries of a list, all of one kind; none where the key is absent."""
        value = self.values.get(key, [])
        if isinstance(value, list) and all(type(entry) is kind for entry in value):
            return tuple(value)
        self.wrong(key, f"a list of {kind.__name__}")
        return ()

    def section(self, key: str) -> Keys:
        """The keys of a nested mapping, none where it is absent."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            self.wrong(key, "a mapping")
            value = {}
        inner = Keys(self.name, value, f"{self._within}{key}.")
        inner.problems = self.problems
        return inner

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.values), None)

    def _checked(self, key: str, least: int) -> int:
        value = self.values[key]
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.wrong(key, f"a whole number of at least {least}")
        return least

    def _keep(self, what: str, hint: str) -> None:
        message = f"config.json of {self.name!r} {what}"
        self.problems.append(Problem("model.config", message, hint=hint))
