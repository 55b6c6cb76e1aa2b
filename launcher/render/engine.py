"""The Jinja2 environment: undefined names fail, every value is quoted, output is exact."""

from __future__ import annotations

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
        loader=jinja2.DictLoader(dict(templates)),
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
        raise RenderError(_problem(name, exc)) from exc


def _finalize(value: object) -> str:
    if isinstance(value, jinja2.Undefined):
        return str(value)  # StrictUndefined raises here and names the missing variable
    return shell_value(value)


def _problem(name: str, exc: Exception) -> Problem:
    line = getattr(exc, "lineno", None)
    place = f"{getattr(exc, 'name', None) or name}:{line}" if line else name
    hint = "if you overrode this template, compare it with the shipped one"
    return Problem("template.broken", f"template {place}: {exc}", hint=hint)
