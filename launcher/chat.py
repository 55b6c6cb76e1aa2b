"""Turns as the text that a model really gets: through its checkpoint's chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from launcher.errors import RowError

__all__ = ["Messages", "chat_text", "final_text"]

Messages = Sequence[Mapping[str, Any]]


def final_text(model_path: str | None) -> Callable[[Messages], str]:
    """What makes turns the text that the model gets; without a template, the turns as they are."""
    return _template_of(Path(model_path)) if model_path else _as_turns


def _as_turns(messages: Messages) -> str:
    return "\n".join(f"<{turn['role']}> {turn['content']}" for turn in messages)


def _template_of(directory: Path) -> Callable[[Messages], str]:
    config: dict[str, Any] = {}
    if (path := directory / "tokenizer_config.json").is_file():
        config = json.loads(path.read_bytes())
    template = config.get("chat_template")
    if (path := directory / "chat_template.jinja").is_file():
        template = path.read_text(encoding="utf-8")
    if isinstance(template, list):  # several named ones; engines take the default
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    if not isinstance(template, str):
        return _as_turns
    tokens = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, str | dict)
    }
    return lambda messages: chat_text(template, messages, tokens)


def chat_text(template: str, messages: Messages, special_tokens: Mapping[str, str]) -> str:
    """``messages`` through a checkpoint's chat template, with the turn of the answer opened.

    Raises
    ------
    RowError
        ``template_error``: the template refuses these messages, or fails.

    Notes
    -----
    The environment is that of transformers (``utils/chat_template_utils.py``,
    ``_compile_jinja_template``): sandboxed, blocks trimmed, loop controls, ``generation`` blocks,
    ``tojson`` without HTML escapes, ``raise_exception``, ``strftime_now``.
    """
    try:
        return _compiled(template).render(
            messages=messages, add_generation_prompt=True, **special_tokens
        )
    except jinja2.TemplateError as exc:
        raise RowError("template_error", f"the chat template refuses the row: {exc}") from exc
    except Exception as exc:  # the template is the checkpoint's code and may raise anything
        what = f"the chat template fails on the row: {type(exc).__name__}: {exc}"
        raise RowError("template_error", what) from exc


class _Generation(Extension):
    """``{% generation %}`` marks what the model says, which matters in training: it stays."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Macro) -> str:
        return caller()


@lru_cache(maxsize=1)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment.from_string(template)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - local time, as in transformers


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
