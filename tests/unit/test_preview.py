"""Chat templates of checkpoints: whatever they do, a row becomes text or an error."""

from __future__ import annotations

import re

import pytest

from launcher.chat import chat_text
from launcher.errors import RowError

MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_template_may_ask_for_the_date() -> None:
    text = chat_text("{{ strftime_now('%Y') }} {{ messages[0]['content'] }}", MESSAGES, {})
    assert re.fullmatch(r"20\d\d hi", text)


def test_what_is_marked_as_generated_stays_as_it_is() -> None:
    template = "<{% generation %}{{ messages[0].content }}{% endgeneration %}>"
    assert chat_text(template, MESSAGES, {}) == "<hi>"


def test_json_has_the_options_that_templates_give_it() -> None:
    template = "{{ {'a': 'é<'} | tojson }}{{ ['é'] | tojson(ensure_ascii=true) }}"
    assert chat_text(template, MESSAGES, {}) == '{"a": "é<"}["\\u00e9"]'


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('no system turn') }}", "refuses the row: no system turn"),
        ("{{ messages[0].content.__class__.mro() }}", "unsafe"),
        ("{% nonsense %}", "nonsense"),
    ],
)
def test_a_template_that_fails_is_an_error_of_the_row(template: str, why: str) -> None:
    with pytest.raises(RowError, match=why) as caught:
        chat_text(template, MESSAGES, {})
    assert caught.value.code == "template_error"
