"""The Jinja2 environment: undefined names fail, every value is quoted, output is exact."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import jinja2

from launcher.errors import Problem, RenderError
from launcher.render.quoting import sbatch_value, shell_value

__all__ = ["render_template"]


def render_template(name: str, templates: Mapping[str, str], context: Mapping[str, object]) -> str:
    """Render one template to text.

    Parameters
    ----------
    name
        Key in ``templates``, such as ``"slurm/script.sh.j2"``.
    templates
        Every template that ``name`` may include, already read.
    context
        Names the template may use; one that it uses and this lacks is an error.

    Raises
    ------
    RenderError
        ``template.broken``, with the template's name and line.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _source(name, templates)),
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - shell, not HTML; `finalize` quotes
    )
    environment.filters["sbatch"] = sbatch_value
    try:
        return environment.get_template(name).render(context)
    except (jinja2.TemplateError, TypeError, ValueError) as exc:
        raise RenderError(_problem(_place(name, exc, templates), exc)) from exc


def _source(name: str, templates: Mapping[str, str]) -> tuple[str, str, None] | None:
    # With its name as its file name a template is found again in tracebacks.
    return (templates[name], name, None) if name in templates else None


def _finalize(value: object) -> str:
    if isinstance(value, jinja2.Undefined):
        return str(value)  # StrictUndefined raises here and names the missing variable
    return shell_value(value)


def _place(name: str, exc: Exception, templates: Mapping[str, str]) -> str:
    """``template:line``, or the template alone where no line is to blame."""
    if isinstance(exc, jinja2.TemplateSyntaxError):
        return f"{exc.name or name}:{exc.lineno}"
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if f.filename in templates]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name


def _problem(place: str, exc: Exception) -> Problem:
    hint = "if you overrode this template, compare it with the shipped one"
    return Problem("template.broken", f"template {place}: {exc}", hint=hint)
