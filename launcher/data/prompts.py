"""Rows to prompts: the job's templates, or what the row itself brings.

Templates are the user's code, run on somebody else's data: Jinja2 in its sandbox, with nothing in
reach that could change from one try to the next. A row that was half done when a node died must
give the same prompt again.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from launcher.data.rows import Row
from launcher.errors import Location, Problem, RowError, SpecError
from launcher.plan.types import PromptSpec, Sampling

__all__ = [
    "Prompt",
    "PromptBuilder",
    "asks_for_completion",
    "row_id",
    "row_problems",
    "row_seed",
]

Turns = tuple[Mapping[str, Any], ...]


class Tokens(NamedTuple):
    """A prompt that is token ids already."""

    ids: Sequence[int]


# Keys of an OpenAI body. These change nothing in the answer …
_IGNORED = frozenset({"metadata", "model", "prompt_cache_key", "safety_identifier"})
_IGNORED |= {"service_tier", "store", "stream_options", "user"}
# … these are taken over …
_TAKEN = frozenset({"max_completion_tokens", "max_tokens", "messages", "prompt"})
_TAKEN |= {"logprobs", "seed", "stop", "temperature", "top_logprobs", "top_p"}
_KNOWN = _IGNORED | _TAKEN
# … and these are fine only where they ask for nothing, which clients often write out.
_NEUTRAL: Mapping[str, Any] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "n": 1,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "stream": False,
    "tool_choice": "none",
    "tools": [],
}
_MOST_LOGPROBS = 20
_SEED_BITS = 63  # engines keep seeds in signed integers of 64 bits
# Jinja2's Undefined._undefined_message: "'a' is undefined", "'dict object' has no attribute 'a'".
_MISSING_NAME = re.compile(r"'([^']+)'(?: is undefined)?$")
_FIELDS_SHOWN = 8


class Prompt(NamedTuple):
    """What one row asks of the model: one of ``text``, ``messages`` and ``tokens`` is set.

    Attributes
    ----------
    id
        The user's own id, as `row_id` gives it. It is carried, never a key.
    sampling
        The job's, with the row's own seed and what an OpenAI line overrides.
    text
        Sent as it is.
    messages
        Turns for the model's chat template, each with a ``role`` and text ``content``.
    tokens
        Token ids that the row itself brings as its prompt, sent as they are.
    """

    id: str | None
    sampling: Sampling
    text: str | None = None
    messages: Turns | None = None
    tokens: Sequence[int] | None = None


class PromptBuilder:
    """Makes the prompts of a run. Templates are compiled once, here.

    Raises
    ------
    SpecError
        ``input.template`` at ``where`` when a template is not well formed.
    """

    def __init__(
        self, spec: PromptSpec, sampling: Sampling, *, where: Location | None = None
    ) -> None:
        env = _environment()
        self._chat = spec.chat
        self._seed = sampling.seed
        # `dataclasses.replace` takes five times as long, for every row.
        self._sampling = {f.name: getattr(sampling, f.name) for f in dataclass_fields(sampling)}
        del self._sampling["seed"]
        self._text = None if spec.prompt is None else _compiled(env, spec.prompt, where)
        self._turns = [(role, _compiled(env, content, where)) for role, content in spec.messages]

    def build(self, row: Row) -> Prompt:
        """The prompt of ``row``.

        Raises
        ------
        RowError
            The row's own error; ``missing_field``, ``template_error``, ``unsafe_template``;
            ``bad_type`` (a field that is not what its name asks for), ``empty_prompt`` (white
            space alone), ``unsupported_param`` (an OpenAI line that asks for something else).
        """
        if row.error is not None:
            raise row.error
        fields = row.fields or {}
        seed = row_seed(self._seed, row.file, row.offset)
        sampling = Sampling(**self._sampling, seed=seed)
        body = _openai_body(fields)
        if self._text is None and not self._turns and body is not None:
            bare = _check_openai(body, fields.get("url"))
            own = _own(body, ("prompt",) if bare else ("messages",))
            return self._prompt(fields, own, _overridden(sampling, body, bare=bare), bare=bare)
        return self._prompt(fields, self._asked(fields), sampling, bare=not self._chat)

    def _asked(self, fields: Mapping[str, Any]) -> str | Turns | Tokens:
        if self._text is not None:
            return _rendered(self._text, fields)
        if self._turns:
            turns = [{"role": role, "content": _rendered(t, fields)} for role, t in self._turns]
            return tuple(turns)
        return _own(fields, ("messages", "prompt", "text"))

    def _prompt(
        self,
        fields: Mapping[str, Any],
        asked: str | Turns | Tokens,
        sampling: Sampling,
        *,
        bare: bool,
    ) -> Prompt:
        user_id = _id(fields)
        if isinstance(asked, Tokens):
            return Prompt(id=user_id, tokens=asked.ids, sampling=sampling)
        if isinstance(asked, str):
            _check_text([asked])
            if bare:
                return Prompt(id=user_id, text=asked, sampling=sampling)
            turns: Turns = ({"role": "user", "content": asked},)
            return Prompt(id=user_id, messages=turns, sampling=sampling)
        _check_text([turn["content"] for turn in asked])
        if not self._chat:
            raise RowError("bad_type", "messages need a chat template, and chat is false")
        return Prompt(id=user_id, messages=asked, sampling=sampling)


def row_id(row: Row) -> str | None:
    """The user's own id: ``custom_id`` of an OpenAI line, else ``id`` if text or an integer."""
    return None if row.fields is None else _id(row.fields)


def asks_for_completion(fields: Mapping[str, Any]) -> bool:
    """Whether ``fields`` are an OpenAI batch line that wants its prompt sent as it is."""
    body = _openai_body(fields)
    return body is not None and _is_bare(body, fields.get("url"))


def row_seed(seed: int, file: int, offset: int) -> int:
    """A seed of 63 bits for the row at ``offset`` of ``file``, the same in every attempt.

    >>> row_seed(1, 0, 0) == row_seed(1, 0, 0) != row_seed(1, 0, 1)
    True
    """
    digest = hashlib.blake2b(f"{seed}:{file}:{offset}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def row_problems(
    errors: Iterable[RowError], rows: Sequence[Row], *, where: Location | None = None
) -> list[Problem]:
    """What would go wrong with ``rows``, a sample of the input, before anything is submitted.

    Parameters
    ----------
    errors
        Those that `PromptBuilder.build` raised for some of ``rows``.

    Returns
    -------
    list of Problem
        At most one of each code: ``input.template``, ``input.missing-field``,
        ``input.unsafe-template`` and, for rows that are bad in themselves,
        ``input.invalid-rows``. Errors when they stop every row (unsafe templates: any row),
        else warnings.
    """
    failures: dict[str, list[RowError]] = {}
    for error in errors:
        failures.setdefault(_PROBLEMS.get(error.code, "input.invalid-rows"), []).append(error)
    lines = len(rows)
    good = sum(row.error is None for row in rows)
    return [
        _summary(code, found, lines if code == "input.invalid-rows" else good, where)
        for code, found in failures.items()
    ]


_PROBLEMS = {
    "missing_field": "input.missing-field",
    "template_error": "input.template",
    "unsafe_template": "input.unsafe-template",
}
_PROBLEM_HINTS = {
    "input.invalid-rows": "correct these rows; they would be published as errors",
    "input.missing-field": "give every row the field, or write {{ name | default('') }}",
    "input.template": "correct the template, or the rows it fails on",
    "input.unsafe-template": "use the row's fields and Jinja2's own filters only",
}


class _MissingFieldError(RowError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__("missing_field", message)
        self.hint = hint


def _missing(name: str, fields: Mapping[str, Any]) -> _MissingFieldError:
    nested = (key for value in fields.values() if isinstance(value, Mapping) for key in value)
    near = difflib.get_close_matches(name, [*fields, *nested], n=1)
    if near:
        return _MissingFieldError(
            f"the row has no field {name!r} (the nearest is {near[0]!r})",
            f"write {near[0]} instead of {name}",
        )
    shown = ", ".join(list(fields)[:_FIELDS_SHOWN])
    return _MissingFieldError(
        f"the row has no field {name!r}", f"use one of the row's fields: {shown}"
    )


def _summary(code: str, errors: list[RowError], total: int, where: Location | None) -> Problem:
    first, hint = errors[0], _PROBLEM_HINTS[code]
    if len(errors) == total and isinstance(first, _MissingFieldError):
        hint = first.hint
    fatal = len(errors) == total or code == "input.unsafe-template"
    return Problem(
        code,
        f"{len(errors)} of {total} sampled rows: {first.message}",
        where,
        hint,
        "error" if fatal else "warning",
    )


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    # Jinja2's other globals (dict, joiner, lipsum …) would stand in for a missing field of their
    # name, and chance gives another prompt each time.
    env.globals = {name: env.globals[name] for name in ("namespace", "range")}
    del env.filters["random"]
    return env


def _compiled(env: ImmutableSandboxedEnvironment, source: str, where: Location | None) -> Template:
    try:
        return env.from_string(source)
    except TemplateSyntaxError as exc:
        what = f"line {exc.lineno} of the template: {(exc.message or '').rstrip('.')}"
        hint = "correct the template's Jinja2 syntax"
        raise SpecError(Problem("input.template", what, where, hint)) from exc


def _rendered(template: Template, fields: Mapping[str, Any]) -> str:
    try:
        # As Template.render does it, without what serves imports, which find nothing here.
        env = template.environment
        names = {**env.globals, **fields}
        context = env.context_class(env, names, template.name, template.blocks)
        return env.concat(template.root_render_func(context))
    except UndefinedError as exc:
        if name := _MISSING_NAME.search(str(exc)):
            raise _missing(name[1], fields) from exc
        raise RowError("missing_field", str(exc)) from exc
    except SecurityError as exc:
        raise RowError("unsafe_template", str(exc).rstrip(".")) from exc
    except Exception as exc:  # the template is the user's code and may raise anything
        raise RowError("template_error", f"{type(exc).__name__}: {exc}") from exc


def _id(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("id") if _openai_body(fields) is None else fields["custom_id"]
    known = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if known else None


def _openai_body(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    body = fields.get("body")
    return body if "custom_id" in fields and isinstance(body, Mapping) else None


def _own(fields: Mapping[str, Any], names: Sequence[str]) -> str | Turns | Tokens:
    """The prompt that the first of ``names`` holds. Null counts as absent, as in OpenAI's API."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        wanted = " or ".join(names)
        hint = f"set input.prompt or input.messages, or give each row {wanted}"
        raise _MissingFieldError(f"the row brings no prompt: no {wanted}", hint)
    value = fields[name]
    if name == "messages":
        return _turns(value)
    if name == "prompt" and isinstance(value, list):
        return _tokens(value)
    if not isinstance(value, str):
        raise RowError("bad_type", f"{name} is a {type(value).__name__}, not text")
    return value


def _tokens(value: list[Any]) -> Tokens:
    """A prompt as OpenAI's completions take it too: the ids of its tokens."""
    if not value:
        raise RowError("empty_prompt", "the prompt has no tokens")
    for number, token in enumerate(value):
        if type(token) is not int or token < 0:  # True is an int as well
            message = f"prompt[{number}] is {token!r}, not a token id from 0"
            raise RowError("bad_type", message)
    return Tokens(value)


def _turns(value: Any) -> Turns:
    if not isinstance(value, list):
        raise RowError("bad_type", f"messages is a {type(value).__name__}, not a list")
    for number, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise RowError("bad_type", f"messages[{number}] is a {type(turn).__name__}, not a turn")
        for key in ("role", "content"):
            if not isinstance(turn.get(key), str):
                kind = type(turn[key]).__name__ if key in turn else "missing"
                raise RowError("bad_type", f"messages[{number}].{key} is {kind}, not text")
    return tuple(value)


def _check_text(texts: Sequence[str]) -> None:
    whole = "".join(texts)
    if not whole.strip():
        raise RowError("empty_prompt", "the prompt is empty, or white space alone")
    try:
        whole.encode()
    except UnicodeEncodeError as exc:
        # No tokenizer takes one, and some end the engine.
        char = ord(exc.object[exc.start])
        raise RowError("bad_type", f"the prompt holds a lone surrogate U+{char:04X}") from exc


def _check_openai(body: Mapping[str, Any], url: Any) -> bool:
    """Whether the line asks for a bare completion, after a look at everything it asks for."""
    for key, value in body.items():
        if key not in _KNOWN and not _asks_nothing(key, value):
            raise RowError("unsupported_param", f"{key} is not supported in body")
    bare = _is_bare(body, url)
    extra = "messages" if bare else "prompt"
    if body.get(extra) is not None:
        raise RowError("unsupported_param", f"{extra} is not supported in this body")
    return bare


def _is_bare(body: Mapping[str, Any], url: Any) -> bool:
    place = url if isinstance(url, str) else ""
    to_completions = place.endswith("/completions") and not place.endswith("/chat/completions")
    return to_completions or body.get("prompt") is not None


def _asks_nothing(key: str, value: Any) -> bool:
    if value is None:
        return True
    neutral = _NEUTRAL.get(key)
    # 1 == True and 0 == False, but not as an answer to the same question.
    same_kind = isinstance(value, bool) == isinstance(neutral, bool)
    return same_kind and value == neutral


def _is_int(value: Any, *, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, *, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)


class _Override(NamedTuple):
    field: str
    accepts: Callable[[Any], bool]
    wanted: str


_LIMIT = _Override("max_tokens", partial(_is_int, least=1), "a whole number from 1")
_OVERRIDES: Mapping[str, _Override] = {
    "max_completion_tokens": _LIMIT,
    "max_tokens": _LIMIT,
    "seed": _Override(
        "seed", partial(_is_int, least=0, most=2**_SEED_BITS - 1), "a whole number of 63 bits"
    ),
    "stop": _Override("stop", _is_stop, "text or a list of texts"),
    "temperature": _Override("temperature", partial(_is_number, most=2), "a number from 0 to 2"),
    "top_p": _Override(
        "top_p", lambda value: _is_number(value, most=1) and value > 0, "a number over 0, up to 1"
    ),
}


def _overridden(sampling: Sampling, body: Mapping[str, Any], *, bare: bool) -> Sampling:
    given = {key: body[key] for key in _OVERRIDES if body.get(key) is not None}
    if {"max_tokens", "max_completion_tokens"} <= given.keys():
        raise RowError("unsupported_param", "max_tokens and max_completion_tokens are both given")
    changes: dict[str, Any] = {}
    for key, value in given.items():
        override = _OVERRIDES[key]
        if not override.accepts(value):
            raise RowError("bad_type", f"{key} is {value!r}, not {override.wanted}")
        changes[override.field] = value
    if "stop" in changes:
        stop = changes["stop"]
        changes["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if "logprobs" in body or "top_logprobs" in body:
        changes.update(_logprobs(body, bare=bare))
    return replace(sampling, **changes)


def _logprobs(body: Mapping[str, Any], *, bare: bool) -> dict[str, int | None]:
    """What the line itself wants: a number in completions, a switch and a number in chats."""
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if bare:
        if top is not None:
            raise RowError("unsupported_param", "top_logprobs is not supported in this body")
        if wanted is not None and wanted is not False:  # OpenAI itself takes 5 at most
            return {"logprobs": _count_of_logprobs("logprobs", wanted)}
        return {} if wanted is None else {"logprobs": None}
    if wanted is not None and not isinstance(wanted, bool):
        raise RowError("bad_type", f"logprobs is {wanted!r}, not true or false")
    count = 0 if top is None else _count_of_logprobs("top_logprobs", top)
    if count and not wanted:
        raise RowError("unsupported_param", "top_logprobs needs logprobs to be true")
    return {} if wanted is None else {"logprobs": count if wanted else None}


def _count_of_logprobs(key: str, value: Any) -> int:
    if not _is_int(value, least=0, most=_MOST_LOGPROBS):
        message = f"{key} is {value!r}, not a whole number from 0 to {_MOST_LOGPROBS}"
        raise RowError("bad_type", message)
    count: int = value
    return count
