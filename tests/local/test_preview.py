"""The preview shows what the tokenizer's own template gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.chat import chat_text

pytestmark = pytest.mark.local


def test_the_preview_is_what_transformers_would_send(smollm2: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    messages = [{"role": "user", "content": 'What is "2 < 3" & why?\n'}]
    config = json.loads((smollm2 / "tokenizer_config.json").read_text())
    template = tokenizer.chat_template
    tokens = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert chat_text(template, messages, tokens) == wanted


MARKED = """
{% for m in messages %}{% set last = m %}
{% generation %}
  {{ m.content }}
{% set last = 1 %}
{% endgeneration %}
{{ last }}{% endfor %}
"""


@pytest.mark.parametrize(
    "template",
    [
        MARKED,
        "{{ strftime_now('%d %B %Y') }}{{ messages | tojson(indent=1, ensure_ascii=true) }}",
    ],
)
def test_tags_and_names_mean_what_they_do_to_transformers(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]
    (wanted,), _ = render_jinja_template([messages], chat_template=template)
    assert chat_text(template, messages, {}) == wanted
