"""From rows to prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.prompts import Prompt, PromptBuilder, row_id, row_problems, row_seed
from launcher.data.rows import Row
from launcher.errors import Location, Problem, RowError, SpecError
from launcher.plan.types import PromptSpec, Sampling

SAMPLING = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, seed=1, stop=("END",))
WHERE = Location("job.yaml", 5, 3, "input.prompt")
OWN = PromptSpec()
BARE = PromptSpec(chat=False)


def row(offset: int = 0, /, **fields: Any) -> Row:
    return Row(file=0, offset=offset, fields=fields)


def build(spec: PromptSpec, fields: dict[str, Any]) -> Prompt:
    return PromptBuilder(spec, SAMPLING).build(row(**fields))


def refused(spec: PromptSpec, fields: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        build(spec, fields)
    return caught.value


def text_of(template: str, **fields: Any) -> str | None:
    return build(PromptSpec(prompt=template, chat=False), fields).text


def user(content: str) -> tuple[dict[str, str]]:
    return ({"role": "user", "content": content},)


def line(url: str | None = None, **body: Any) -> dict[str, Any]:
    place = {} if url is None else {"method": "POST", "url": url}
    return {"custom_id": "r1", **place, "body": body}


def chat(**body: Any) -> dict[str, Any]:
    return line("/v1/chat/completions", messages=list(user("hi")), **body)


# Templates


def test_a_template_becomes_one_user_message() -> None:
    prompt = build(PromptSpec(prompt="Sum up:\n{{ text }}\n"), {"text": "abc"})
    assert prompt.messages == user("Sum up:\nabc\n")
    assert prompt.text is None


def test_without_chat_a_template_is_the_text() -> None:
    prompt = build(PromptSpec(prompt="{{ a.b[0] }}", chat=False), {"a": {"b": [3]}})
    assert (prompt.text, prompt.messages) == ("3", None)


def test_each_turn_is_a_template() -> None:
    spec = PromptSpec(messages=(("system", "Be {{ tone }}."), ("user", "{{ q }}")))
    assert build(spec, {"tone": "brief", "q": "Why?"}).messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_a_field_goes_into_the_prompt_as_it_is(text: str) -> None:
    assert text_of("{{ text }}", text=text) == text


def test_data_are_never_templates() -> None:
    assert text_of("{{ text }}", text="{{ 1 + 1 }} <b>") == "{{ 1 + 1 }} <b>"


def test_a_template_wins_over_what_the_row_brings() -> None:
    assert text_of("{{ custom_id }}", **chat()) == "r1"


@pytest.mark.parametrize(
    ("template", "name", "near"),
    [
        ("{{ txt }}", "txt", "text"),
        ("{{ doc.titel }}", "titel", "title"),
        ("{% for x in txt %}{% endfor %}", "txt", "text"),
        ("{{ txt.upper() }}", "txt", "text"),
        ("{{ txt | length }}", "txt", "text"),
        ("{{ doc['titel'] }}", "titel", "title"),
    ],
)
def test_a_missing_field_is_named_with_the_nearest(template: str, name: str, near: str) -> None:
    error = refused(PromptSpec(prompt=template), {"text": "a", "doc": {"title": "b"}})
    assert error.code == "missing_field"
    assert repr(name) in error.message
    assert repr(near) in error.message


@pytest.mark.parametrize("name", ["dict", "lipsum", "cycler", "joiner"])
def test_nothing_stands_in_for_a_missing_field(name: str) -> None:
    error = refused(PromptSpec(prompt="{{ %s }}" % name), {"text": "a"})  # noqa: UP031 - braces
    assert error.code == "missing_field"


def test_a_missing_element_is_a_missing_field() -> None:
    assert refused(PromptSpec(prompt="{{ a[3] }}"), {"a": [1]}).code == "missing_field"


def test_a_field_may_be_optional() -> None:
    assert text_of("{{ a | default('none') }}{% if b is defined %}b{% endif %}") == "none"


@pytest.mark.parametrize("template", ["{{ 1 // a }}", "{{ a + 'x' }}", "{{ range(10**9) | list }}"])
def test_a_template_that_fails_is_a_row_error(template: str) -> None:
    assert refused(PromptSpec(prompt=template), {"a": 0}).code == "template_error"


@pytest.mark.parametrize(
    "template",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ items.append(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ text.format.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(template: str) -> None:
    error = refused(PromptSpec(prompt=template), {"text": "a", "items": []})
    assert error.code == "unsafe_template"


@pytest.mark.parametrize(
    "template", ["{{ text", "{% if %}", "{{ text | nosuch }}", "{{ x|random }}"]
)
def test_a_malformed_template_is_a_spec_error(template: str) -> None:
    with pytest.raises(SpecError) as caught:
        PromptBuilder(PromptSpec(messages=(("user", template),)), SAMPLING)
    assert [problem.code for problem in caught.value.problems] == ["input.template"]


# What the row brings


def test_messages_come_before_prompt_before_text() -> None:
    fields: dict[str, Any] = {"text": "t", "prompt": "p", "messages": list(user("m"))}
    assert build(OWN, fields).messages == user("m")
    assert build(OWN, {**fields, "messages": None}).messages == user("p")
    assert build(BARE, {"text": "t"}).text == "t"


def test_a_row_that_brings_nothing_misses_a_field() -> None:
    assert refused(OWN, {"question": "?"}).code == "missing_field"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": 3},
        {"prompt": ["a"]},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": 1, "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"prompt": "a\ud800"},
        {"messages": [{"role": "user", "content": "\udfff"}]},
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(fields: dict[str, Any]) -> None:
    assert refused(OWN, fields).code == "bad_type"


@pytest.mark.parametrize(
    "fields",
    [{"text": ""}, {"prompt": " \n\t"}, {"messages": []}, {"messages": list(user(" "))}],
)
def test_a_blank_prompt_is_refused(fields: dict[str, Any]) -> None:
    assert refused(OWN, fields).code == "empty_prompt"


def test_messages_without_a_chat_template_are_refused() -> None:
    assert refused(BARE, {"messages": list(user("hi"))}).code == "bad_type"
    spec = PromptSpec(messages=(("user", "hi"),), chat=False)
    assert refused(spec, {}).code == "bad_type"


def test_a_row_that_could_not_be_read_keeps_its_error() -> None:
    error = RowError("invalid_json", "not JSON")
    with pytest.raises(RowError) as caught:
        PromptBuilder(OWN, SAMPLING).build(Row(file=0, offset=0, error=error))
    assert caught.value is error


# OpenAI batch lines


def test_an_openai_chat_line_is_taken_with_what_it_overrides() -> None:
    body = {"model": "m", "temperature": 0, "top_p": 1, "seed": 3, "stop": "x", "user": "u"}
    prompt = build(OWN, chat(max_completion_tokens=64, metadata={}, **body))
    assert (prompt.id, prompt.text, prompt.messages) == ("r1", None, user("hi"))
    assert prompt.sampling == Sampling(
        max_tokens=64, temperature=0, top_p=1, top_k=5, seed=3, stop=("x",)
    )


def test_what_an_openai_line_leaves_out_is_the_jobs() -> None:
    sampling = build(OWN, chat(temperature=None, stop=None)).sampling
    assert sampling.temperature == 0.5
    assert sampling.stop == ("END",)
    assert sampling.seed == row_seed(1, 0, 0)


def test_an_empty_stop_list_stops_nowhere() -> None:
    assert build(OWN, chat(stop=[])).sampling.stop == ()


@pytest.mark.parametrize("spec", [OWN, BARE])
@pytest.mark.parametrize("url", [None, "/v1/completions"])
def test_completion_lines_are_sent_bare(spec: PromptSpec, url: str | None) -> None:
    prompt = build(spec, line(url, prompt="Once", max_tokens=2))
    assert (prompt.text, prompt.messages, prompt.sampling.max_tokens) == ("Once", None, 2)


def test_a_chat_line_needs_a_chat_template() -> None:
    assert refused(BARE, chat()).code == "bad_type"


@pytest.mark.parametrize(
    "key",
    ["tools", "response_format", "logit_bias", "top_k", "input", "functions", "min_p", "stream"],
)
def test_keys_that_would_change_the_answer_are_refused_by_name(key: str) -> None:
    error = refused(OWN, chat(**{key: [1]}))
    assert error.code == "unsupported_param"
    assert key in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"stream": True},
        {"top_logprobs": 2},
        {"top_logprobs": 2, "logprobs": False},
        {"max_tokens": 1, "max_completion_tokens": 1},
        {"prompt": "both"},
    ],
)
def test_what_cannot_be_done_is_refused(body: dict[str, Any]) -> None:
    assert refused(OWN, chat(**body)).code == "unsupported_param"


def test_keys_that_ask_for_nothing_are_fine() -> None:
    body = {"n": 1, "stream": False, "tools": [], "presence_penalty": 0.0, "logit_bias": None}
    neutral = {"response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0}
    assert build(OWN, chat(**body, **neutral)).messages == user("hi")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("temperature", 2.1),
        ("temperature", "0"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", [1]),
        ("stop", ""),
        ("logprobs", 0),
        ("logprobs", "true"),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("top_logprobs", True),
    ],
)
def test_values_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    error = refused(OWN, chat(**{key: value}))
    assert error.code == "bad_type"
    assert error.message.startswith(f"{key} is {value!r}")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, 7),
        ({"logprobs": None, "top_logprobs": 0}, 7),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": None}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_a_chat_line_wants_log_probabilities_its_own_way(
    body: dict[str, Any], wanted: int | None
) -> None:
    sampling = Sampling(max_tokens=9, logprobs=7)
    assert PromptBuilder(OWN, sampling).build(row(**chat(**body))).sampling.logprobs == wanted


@pytest.mark.parametrize(("given_", "wanted"), [(None, 7), (False, None), (0, 0), (5, 5), (20, 20)])
def test_a_completion_line_wants_so_many_log_probabilities(given_: Any, wanted: int | None) -> None:
    sampling = Sampling(max_tokens=9, logprobs=7)
    fields = line("/v1/completions", prompt="Once", logprobs=given_)
    assert PromptBuilder(OWN, sampling).build(row(**fields)).sampling.logprobs == wanted


@pytest.mark.parametrize("value", [True, -1, 21, 1.0, "5"])
def test_other_log_probabilities_of_a_completion_line_are_refused(value: Any) -> None:
    error = refused(OWN, line("/v1/completions", prompt="Once", logprobs=value))
    assert (error.code, error.message) == (
        "bad_type",
        f"logprobs is {value!r}, not a whole number from 0 to 20",
    )
    both = refused(OWN, line("/v1/completions", prompt="Once", logprobs=1, top_logprobs=1))
    assert both.code == "unsupported_param"


def test_a_line_for_another_endpoint_misses_its_prompt() -> None:
    assert refused(OWN, line("/v1/chat/completions")).code == "missing_field"
    assert refused(OWN, line("/v1/completions")).code == "missing_field"


# Ids and seeds


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id": "a"}, "a"),
        ({"id": 7}, "7"),
        ({"id": True}, None),
        ({"id": 1.5}, None),
        ({"id": None}, None),
        ({}, None),
        ({"custom_id": "c", "body": {}, "id": "a"}, "c"),
        ({"custom_id": 4, "body": {}}, "4"),
        ({"custom_id": "c", "id": "a"}, "a"),
    ],
)
def test_the_users_id_is_carried(fields: dict[str, Any], expected: str | None) -> None:
    assert row_id(row(**fields)) == expected


def test_a_row_that_could_not_be_read_has_no_id() -> None:
    assert row_id(Row(file=0, offset=0, error=RowError("invalid_json", ""))) is None


def test_seeds_are_the_rows_own_and_stay() -> None:
    builder = PromptBuilder(OWN, SAMPLING)
    seeds = [builder.build(row(offset, text="a")).sampling.seed for offset in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1]
    # The value itself is part of what a run is: another one would change answers on resume.
    assert row_seed(1, 2, 3) == 1527331947104972218


@given(seed=st.integers(0), file=st.integers(0), offset=st.integers(0))
def test_a_seed_has_63_bits(seed: int, file: int, offset: int) -> None:
    assert 0 <= row_seed(seed, file, offset) < 2**63


# The check before anything is submitted

BAD = Row(file=0, offset=9, error=RowError("invalid_json", "not JSON"))


def checked(spec: PromptSpec, *rows: Row) -> list[Problem]:
    builder = PromptBuilder(spec, SAMPLING)
    errors = filter(None, (failure(builder, one) for one in rows))
    return row_problems(errors, rows, where=WHERE)


def failure(builder: PromptBuilder, one: Row) -> RowError | None:
    try:
        builder.build(one)
    except RowError as exc:
        return exc
    return None


def found(prompt: str | None, *rows: Row) -> list[tuple[str, str]]:
    problems = checked(PromptSpec(prompt=prompt), *rows)
    assert all(problem.where == WHERE for problem in problems)
    return [(problem.code, problem.severity) for problem in problems]


def test_a_good_sample_has_no_problems() -> None:
    assert found("{{ a }}", row(a=1), row(a=2)) == []
    assert found("{{ a }}") == []


def test_a_field_no_row_has_is_an_error_with_the_nearest_as_hint() -> None:
    assert found("{{ txt }}", row(text="a"), BAD) == [
        ("input.missing-field", "error"),
        ("input.invalid-rows", "warning"),
    ]
    (problem,) = checked(PromptSpec(prompt="{{ txt }}"), row(text="a"))
    assert problem.hint == "write text instead of txt"


def test_a_field_some_rows_lack_is_a_warning() -> None:
    assert found("{{ a }}", row(a=1), row(b=1)) == [("input.missing-field", "warning")]


def test_one_unsafe_row_is_an_error() -> None:
    template = "{% if a %}{{ ''.__class__ }}{% endif %}x"
    assert found(template, row(a=1), row(a=0)) == [("input.unsafe-template", "error")]


def test_a_template_that_always_fails_is_an_error_and_one_that_sometimes_does_a_warning() -> None:
    assert found("{{ 1 // a }}", row(a=0)) == [("input.template", "error")]
    assert found("{{ 1 // a }}", row(a=0), row(a=1)) == [("input.template", "warning")]


def test_a_malformed_template_is_an_error() -> None:
    with pytest.raises(SpecError) as caught:
        PromptBuilder(PromptSpec(prompt="{{ a"), SAMPLING, where=WHERE)
    (problem,) = caught.value.problems
    assert (problem.code, problem.severity, problem.where) == ("input.template", "error", WHERE)


def test_bad_rows_are_counted() -> None:
    (problem,) = checked(OWN, BAD, row(text="a"), BAD, row(text=" "))
    assert (problem.code, problem.severity) == ("input.invalid-rows", "warning")
    assert problem.message.startswith("3 of 4 ")
    assert found("{{ a }}", BAD, BAD) == [("input.invalid-rows", "error")]
