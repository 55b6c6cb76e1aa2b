"""Engines by name, and the one way in which they read their options."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from launcher.engines.base import Engine, EngineSetup
from launcher.errors import Problem, RunError

__all__ = ["create", "decode_options", "follow"]

Options = TypeVar("Options")

# Modules are named, not imported: each brings libraries that only its own jobs have.
_ENGINES = {
    "echo": ("launcher.engines.echo", "EchoEngine"),
    "tensorrt-llm": ("launcher.engines.tensorrt_llm", "TensorRtLlmEngine"),
    "transformers": ("launcher.engines.transformers", "TransformersEngine"),
    "vllm": ("launcher.engines.vllm", "VllmEngine"),
}


def create(name: str, setup: EngineSetup) -> Engine:
    """The engine called ``name``, not yet started.

    Raises
    ------
    RunError
        ``engine.unavailable`` when there is no such engine; ``engine.options`` when
        it refuses ``setup.options``.
    """
    if name not in _ENGINES:
        raise RunError(_unavailable(name))
    module, cls = _ENGINES[name]
    engine: Engine = getattr(importlib.import_module(module), cls)(setup)
    return engine


def follow(name: str, setup: EngineSetup) -> None:
    """Be a rank after the first of the engine called ``name``, until its first rank ends it.

    Raises
    ------
    RunError
        As `create`; what the engine's ranks raise when they cannot start or die.
    """
    if name not in _ENGINES:
        raise RunError(_unavailable(name))
    importlib.import_module(_ENGINES[name][0]).follow(setup)


def decode_options(kind: type[Options], given: Mapping[str, Any], *, engine: str) -> Options:
    """``given`` as the frozen dataclass ``kind``, which checks ranges when it is built.

    Parameters
    ----------
    kind
        A dataclass with a default for every field; its ``__post_init__`` raises `ValueError`
        for a value out of range.
    engine
        Name of the engine, for messages.

    Raises
    ------
    RunError
        ``engine.options``: an unknown name, a wrong type, or a value out of range. All unknown
        names and wrong types are reported at once.
    """
    types = get_type_hints(kind)
    problems = [
        problem for key in given for problem in _check(key, given[key], types, engine=engine)
    ]
    if problems:
        raise RunError(problems)
    try:
        return kind(**given)
    except ValueError as exc:
        raise RunError(_refused(f"{engine} {exc}")) from exc


def _unavailable(name: str) -> Problem:
    hint = f"use one of {', '.join(sorted(_ENGINES))}"
    return Problem("engine.unavailable", f"there is no engine {name!r}", hint=hint)


def _check(key: str, value: object, types: Mapping[str, Any], *, engine: str) -> Iterable[Problem]:
    if key not in types:
        near = difflib.get_close_matches(key, types, n=1)
        hint = f"write {near[0]}" if near else f"use one of {', '.join(sorted(types))}"
        yield _refused(f"{engine} has no option {key!r}", hint)
    elif not _fits(value, types[key]):
        wanted = getattr(types[key], "__name__", str(types[key]))
        yield _refused(f"{engine} option {key} is {value!r}, not {wanted}")


def _fits(value: object, wanted: Any) -> bool:
    if isinstance(value, bool):  # an int to Python, never to whoever wrote `true`
        return wanted is bool
    if isinstance(value, int) and isinstance(1.0, wanted):
        return True
    return isinstance(value, wanted)


def _refused(message: str, hint: str = "correct engine_options in the job file") -> Problem:
    return Problem("engine.options", message, hint=hint)
