"""Output rows."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.records import RowHead, encode, error_line, head_of, ok_line, to_openai
from launcher.data.rows import Row
from launcher.engines.base import Completion
from launcher.errors import RowError

ROW = Row(file=2, offset=40, fields={"id": 7, "text": "hi", "label": None})
HEAD = head_of(ROW)
UNREAD = Row(file=0, offset=0, error=RowError("invalid_json", "not JSON"))
ANSWER = Completion(text="yes", finish_reason="stop", prompt_tokens=5, completion_tokens=2)


def ok_row(head: RowHead, answer: Completion = ANSWER) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(ok_line(head, answer, plan="0001"))
    return record


def error_row(head: RowHead, error: RowError) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(error_line(head, error, plan="0001"))
    return record


def failed(code: str) -> dict[str, Any]:
    return error_row(HEAD, RowError(code, "why"))


def real(text: str) -> str:
    """``text`` with surrogate pairs joined, as any reader of JSON joins them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


any_text = st.text(st.characters()).map(real)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)


def test_an_answered_row_says_what_came_and_from_where() -> None:
    assert ok_row(HEAD) == {
        "id": "7",
        "row": [2, 40],
        "status": "ok",
        "response": {"text": "yes"},
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        "finish_reason": "stop",
        "plan": "0001",
    }


def test_an_error_row_says_why() -> None:
    error = RowError("missing_field", "the row has no field 'a'")
    assert error_row(HEAD._replace(id=None), error) == {
        "id": None,
        "row": [2, 40],
        "status": "error",
        "error": {
            "code": "missing_field",
            "message": "the row has no field 'a'",
            "retryable": False,
        },
        "plan": "0001",
    }


@pytest.mark.parametrize("code", ["timeout", "engine_error", "engine_crash", "cancelled"])
def test_what_the_row_is_not_to_blame_for_is_retryable(code: str) -> None:
    assert failed(code)["error"]["retryable"] is True


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("all", {"id": 7, "text": "hi", "label": None}),
        (("label", "text"), {"label": None, "text": "hi"}),
        (("text", "gone"), {"text": "hi"}),
        ((), {}),
    ],
)
def test_kept_fields_are_repeated(
    keep: tuple[str, ...] | Literal["all"], expected: dict[str, Any]
) -> None:
    head = head_of(ROW, keep)
    assert ok_row(head)["input"] == expected
    assert error_row(head, RowError("timeout", ""))["input"] == expected


def test_a_row_that_could_not_be_read_has_no_input_to_keep() -> None:
    assert UNREAD.error is not None
    assert "input" not in error_row(head_of(UNREAD, "all"), UNREAD.error)


@given(record=st.dictionaries(any_text, any_json, max_size=4))
def test_a_record_comes_back_from_its_line(record: dict[str, Any]) -> None:
    line = encode(record)
    assert json.loads(line) == record
    assert line.index(b"\n") == len(line) - 1


def test_lines_are_compact_and_readable() -> None:
    assert encode({"id": "é", "row": [0, 1]}) == '{"id":"é","row":[0,1]}\n'.encode()


def test_lone_surrogates_are_escaped() -> None:
    assert encode({"text": "é\ud800"}) == b'{"text":"\\u00e9\\ud800"}\n'


@given(
    head=st.builds(
        RowHead,
        st.integers(0, 9),
        st.integers(0, 2**40),
        st.none() | any_text,
        st.booleans(),
        st.none() | st.dictionaries(any_text, any_json, max_size=3),
        st.integers(0, 9),
    ),
    text=any_text,
)
def test_the_line_of_an_answer_is_what_its_record_is_encoded_to(head: RowHead, text: str) -> None:
    answer = ANSWER._replace(text=text)
    line = ok_line(head, answer, plan="0001")
    record = json.loads(line)
    assert encode(record) == line
    assert (record["id"], record["response"]["text"]) == (head.id, text)
    assert record.get("input") == head.kept


def test_an_answer_has_the_shape_of_an_openai_batch_line() -> None:
    record = ok_row(HEAD)
    assert to_openai(record, model="m", created_s=9) == {
        "id": "batch_req_2_40",
        "custom_id": "7",
        "response": {
            "status_code": 200,
            "request_id": "req_2_40",
            "body": {
                "id": "chatcmpl-2-40",
                "object": "chat.completion",
                "created": 9,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "yes", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
                "system_fingerprint": None,
            },
        },
        "error": None,
    }


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_json", 400, "invalid_request_error"),
        ("unsupported_param", 400, "invalid_request_error"),
        ("prompt_too_long", 413, "invalid_request_error"),
        ("missing_field", 422, "invalid_request_error"),
        ("engine_error", 500, "server_error"),
        ("timeout", 504, "server_error"),
        ("some_new_code", 500, "server_error"),
    ],
)
def test_an_error_is_an_http_one(code: str, status: int, kind: str) -> None:
    assert to_openai(failed(code), model="m") == {
        "id": "batch_req_2_40",
        "custom_id": "7",
        "response": {
            "status_code": status,
            "request_id": "req_2_40",
            "body": {"error": {"message": "why", "type": kind, "param": None, "code": code}},
        },
        "error": None,
    }


TOLD: list[dict[str, Any]] = [
    {
        "token": 'y"é',
        "logprob": -0.5,
        "bytes": [121, 34, 195, 169],
        "top_logprobs": [
            {"token": "n", "logprob": -0.25, "bytes": [110]},
            {"token": 'y"é', "logprob": -0.5, "bytes": [121, 34, 195, 169]},
        ],
    },
    {
        "token": "\ufffd",
        "logprob": -9999.0,
        "bytes": None,
        "top_logprobs": [{"token": "n", "logprob": -0.25, "bytes": [110]}],
    },
]


@pytest.mark.parametrize("head", [HEAD, HEAD._replace(bare=True)])
def test_log_probabilities_are_told_where_they_are_given(head: RowHead) -> None:
    told = json.dumps(TOLD, ensure_ascii=False, separators=(",", ":"))
    line = ok_line(head, ANSWER._replace(logprobs=told), plan="0001")
    record = json.loads(line)
    assert encode(record) == line
    assert record["response"].pop("logprobs") == {"content": TOLD}
    assert encode(record) == ok_line(head, ANSWER, plan="0001")


def test_openai_chats_have_them_in_their_own_form() -> None:
    record = ok_row(HEAD, ANSWER._replace(logprobs=json.dumps(TOLD)))
    [choice] = to_openai(record, model="m")["response"]["body"]["choices"]
    assert choice["logprobs"] == {"content": TOLD, "refusal": None}


def test_openai_completions_have_them_in_columns_with_the_chosen_token_among_the_likeliest() -> (
    None
):
    record = ok_row(HEAD, ANSWER._replace(logprobs=json.dumps(TOLD)))
    [choice] = to_openai(record, model="m", chat=False)["response"]["body"]["choices"]
    assert choice["logprobs"] == {
        "tokens": ['y"é', "\ufffd"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"n": -0.25, 'y"é': -0.5}, {"n": -0.25, "\ufffd": -9999.0}],
        "text_offset": [0, 3],
    }


def test_an_answer_of_no_tokens_has_no_log_probabilities_of_any() -> None:
    record = ok_row(HEAD, ANSWER._replace(logprobs="[]"))
    [choice] = to_openai(record, model="m", chat=False)["response"]["body"]["choices"]
    assert choice["logprobs"] == {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }


def test_a_row_without_an_id_is_called_by_its_place() -> None:
    assert to_openai(ok_row(HEAD._replace(id=None)), model="m")["custom_id"] == "2:40"
    assert to_openai(ok_row(HEAD._replace(id="")), model="m")["custom_id"] == ""


def test_a_bare_completion_has_the_shape_of_its_own_endpoint() -> None:
    line = to_openai(ok_row(HEAD._replace(id="r2")), model="m", created_s=9, chat=False)
    assert line["response"]["body"] == {
        "id": "cmpl-2-40",
        "object": "text_completion",
        "created": 9,
        "model": "m",
        "choices": [{"index": 0, "text": "yes", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("fields", "response"),
    [
        ({"text": "a", "url": "/v1/completions"}, {"text": "yes"}),
        ({"custom_id": "c", "url": "/v1/chat/completions", "body": {}}, {"text": "yes"}),
        (
            {"custom_id": "c", "url": "/v1/completions", "body": {}},
            {"text": "yes", "object": "text_completion"},
        ),
        (
            {"custom_id": "c", "body": {"prompt": "b"}},
            {"text": "yes", "object": "text_completion"},
        ),
    ],
)
def test_an_answer_says_where_its_openai_line_asked_for_a_completion(
    fields: dict[str, Any], response: dict[str, Any]
) -> None:
    row = Row(file=0, offset=0, fields=fields)
    assert ok_row(head_of(row))["response"] == response
