"""The template environment: nothing undefined, nothing unquoted, nothing lost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from launcher.errors import RenderError
from launcher.render.engine import render_template
from launcher.render.quoting import Raw


def render(text: str, /, **context: object) -> str:
    return render_template("a.j2", {"a.j2": text, "part.j2": "{{ value }}\n"}, context)


def broken(text: str, templates: Mapping[str, str] | None = None, **context: object) -> str:
    with pytest.raises(RenderError) as caught:
        render_template("a.j2", {"a.j2": text, **(templates or {})}, context)
    (problem,) = caught.value.problems
    assert problem.code == "template.broken"
    assert caught.value.exit_code == 5
    assert problem.hint
    return problem.message


def test_every_value_is_quoted_without_being_asked() -> None:
    assert render("x={{ value }}\n", value="$(touch x)") == "x='$(touch x)'\n"


def test_an_included_template_quotes_too_and_only_once() -> None:
    assert render('{% include "part.j2" %}', value="a b") == "'a b'\n"


def test_values_of_a_loop_are_quoted() -> None:
    assert render("{% for v in vs %}{{ v }} {% endfor %}", vs=["a b", 1]) == "'a b' 1 "


def test_raw_and_directives_are_not_quoted_again() -> None:
    assert render("{{ value }}", value=Raw("a | b")) == "a | b"
    assert render("{{ value | sbatch }}", value="a b") == '"a b"'


def test_a_joined_value_is_quoted_as_one_word() -> None:
    assert render("{{ a ~ ' ' ~ b }}", a="x", b="$y") == "'x $y'"


def test_text_around_values_is_kept_to_the_byte() -> None:
    text = "a  \n\n\tb \n"
    assert render(text) == text


def test_lines_of_statements_leave_no_trace() -> None:
    assert render("a\n  {% if yes %}\nb\n  {% endif %}\nc\n", yes=True) == "a\nb\nc\n"


def test_a_name_that_is_missing_is_named_with_its_line() -> None:
    message = broken("a\n{{ missing }}\n")
    assert message == "template a.j2:2: 'missing' is undefined"


def test_a_name_that_an_included_template_misses_is_told_with_that_one() -> None:
    message = broken('a\n{% include "p.j2" %}', {"p.j2": "\n\n{{ missing }}\n"})
    assert message.startswith("template p.j2:3: ")


@pytest.mark.parametrize(
    "text", ["{% if missing %}{% endif %}", "{% for x in missing %}{% endfor %}"]
)
def test_a_missing_name_is_no_empty_value_in_a_statement_either(text: str) -> None:
    assert "'missing' is undefined" in broken(text)


@pytest.mark.parametrize("value", [None, True, ["a"], {"a": 1}, 1.5])
def test_a_value_without_a_form_breaks_the_template(value: object) -> None:
    message = broken("{{ value }}", value=value)
    assert message.startswith("template a.j2:1: ")
    assert "has no form in a script" in message


def test_a_value_with_nul_breaks_the_template() -> None:
    assert "NUL" in broken("{{ value }}", value="a\0b")


def test_a_directive_with_a_line_break_breaks_the_template() -> None:
    message = broken("#SBATCH --x={{ value | sbatch }}\n", value="a\n#SBATCH --nodes=9")
    assert "control characters" in message


def test_a_syntax_error_is_told_with_template_and_line() -> None:
    assert broken("a\nb\n{% if %}\n").startswith("template a.j2:3: ")


def test_a_syntax_error_in_an_included_template_names_that_one() -> None:
    message = broken('{% include "p.j2" %}', {"p.j2": "\n{{ }\n"})
    assert message.startswith("template p.j2:2: ")


def test_a_template_that_is_not_there_is_named() -> None:
    assert "gone.j2" in broken('{% include "gone.j2" %}')
