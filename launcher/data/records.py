"""Output rows: what a run has to say about each input row, and the same in OpenAI's words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol

from launcher.data.prompts import asks_for_completion, row_id
from launcher.data.rows import Row
from launcher.errors import RowError

__all__ = [
    "RETRYABLE",
    "Answer",
    "RowHead",
    "encode",
    "error_line",
    "head_of",
    "ok_line",
    "to_openai",
]

# Another try may well succeed; what is wrong with the row itself stays wrong.
RETRYABLE = frozenset({"cancelled", "engine_crash", "engine_error", "timeout"})
_STATUS = {
    "invalid_csv": 400,
    "invalid_json": 400,
    "invalid_utf8": 400,
    "not_an_object": 400,
    "request_rejected": 400,
    "unsupported_param": 400,
    "prompt_too_long": 413,
    "bad_type": 422,
    "empty_prompt": 422,
    "missing_field": 422,
    "template_error": 422,
    "unsafe_template": 422,
    "timeout": 504,
}
_SERVER_ERROR = 500
_COMPLETION = "text_completion"
_PLAIN = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_BEYOND_ASCII = re.compile("[^ -~]")


class Answer(Protocol):
    """What an engine says about one row; `launcher.engines.base.Completion` is one."""

    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def logprobs(self) -> str | None: ...


class RowHead(NamedTuple):
    """What an output row repeats of its input row.

    Attributes
    ----------
    id
        The user's own id, None where the row has none.
    bare
        Whether it is an OpenAI line that asks for a bare completion.
    kept
        The fields to repeat under ``input``, None for no such key.
    truncated
        Tokens by which the prompt was cut.
    """

    file: int
    offset: int
    id: str | None = None
    bare: bool = False
    kept: Mapping[str, Any] | None = None
    truncated: int = 0


def head_of(row: Row, keep: tuple[str, ...] | Literal["all", "none"] = "none") -> RowHead:
    """What is repeated of ``row``; ``keep`` names fields, and those that it lacks are left out."""
    if row.fields is None:
        return RowHead(row.file, row.offset)
    kept: Mapping[str, Any] | None = None
    if keep == "all":
        kept = row.fields
    elif keep != "none":
        kept = {name: row.fields[name] for name in keep if name in row.fields}
    return RowHead(row.file, row.offset, row_id(row), asks_for_completion(row.fields), kept)


def ok_line(head: RowHead, answer: Answer, *, plan: str) -> bytes:
    """The output row of an answered input row, as `encode` writes it.

    Parameters
    ----------
    plan
        Number of the plan it was answered under, as in ``plans/NNNN.json``.

    Notes
    -----
    The answer to an OpenAI line that asks for a bare completion says so by ``object``, as nothing
    else in an output row tells it from a chat.
    """
    # Written out: the encoder takes four times as long, and every row comes through here.
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    kind = f',"object":"{_COMPLETION}"' if head.bare else ""
    cut = f'"truncated_prompt_tokens":{head.truncated},' if head.truncated else ""
    kept = "" if head.kept is None else f',"input":{_PLAIN.encode(head.kept)}'
    if answer.logprobs is not None:
        kind += f',"logprobs":{{"content":{answer.logprobs}}}'
    return _line(
        f'{{"id":{_quoted(head.id)},"row":[{head.file},{head.offset}],"status":"ok",'
        f'"response":{{"text":{_quoted(answer.text)}{kind}}},'
        f'"usage":{{"prompt_tokens":{prompt},"completion_tokens":{completion},'
        f'"total_tokens":{prompt + completion}}},'
        f'"finish_reason":{_quoted(answer.finish_reason)},{cut}"plan":{_quoted(plan)}{kept}}}'
    )


def error_line(head: RowHead, error: RowError, *, plan: str) -> bytes:
    """The output row of an input row that could not be answered; parameters as in `ok_line`.

    ``retryable`` tells whether the same row may succeed another time.
    """
    record = {
        "id": head.id,
        "row": [head.file, head.offset],
        "status": "error",
        "error": {
            "code": error.code,
            "message": error.message,
            "retryable": error.code in RETRYABLE,
        },
        "plan": plan,
        **({} if head.kept is None else {"input": head.kept}),
    }
    return encode(record)


def encode(record: Mapping[str, Any]) -> bytes:
    r"""``record`` as one line of compact JSON in UTF-8, ``\n`` included.

    Text with lone surrogates, which UTF-8 cannot hold, is written with ``\u`` escapes.
    """
    return _line(_PLAIN.encode(record))


def to_openai(
    record: Mapping[str, Any], *, model: str, created_s: int = 0, chat: bool = True
) -> dict[str, Any]:
    """``record`` as a line of an OpenAI batch output (or error) file.

    Parameters
    ----------
    record
        As `ok_line` or `error_line` writes it.
    created_s
        Unix time to give as ``created``; output rows carry no clock.
    chat
        Whether an answered row went through the chat template: it decides the form of the body.

    Notes
    -----
    Errors are HTTP ones in ``response.body.error`` with ``error`` null, as the service writes
    them (openai/openai-openapi issue 302), not as its schema says. ``custom_id`` is ``file:offset``
    where the row has no id.
    """
    file, offset = record["row"]
    if record["status"] == "ok":
        status, body = 200, _completion(record, model, created_s, chat=chat)
    else:
        status, body = _refusal(record)
    return {
        "id": f"batch_req_{file}_{offset}",
        "custom_id": f"{file}:{offset}" if record["id"] is None else record["id"],
        "response": {"status_code": status, "request_id": f"req_{file}_{offset}", "body": body},
        "error": None,
    }


def _completion(
    record: Mapping[str, Any], model: str, created_s: int, *, chat: bool
) -> dict[str, Any]:
    file, offset = record["row"]
    text = record["response"]["text"]
    told = record["response"].get("logprobs")
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {
        "index": 0,
        **({"message": message} if chat else {"text": text}),
        "logprobs": None if told is None else (_of_chat if chat else _of_completion)(told),
        "finish_reason": record["finish_reason"],
    }
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{file}-{offset}",
        "object": "chat.completion" if chat else _COMPLETION,
        "created": created_s,
        "model": model,
        "choices": [choice],
        "usage": record["usage"],
        **({"system_fingerprint": None} if chat else {}),
    }


def _of_chat(logprobs: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": logprobs["content"], "refusal": None}


def _of_completion(logprobs: Mapping[str, Any]) -> dict[str, Any]:
    """``logprobs`` in the form of completions; offsets count characters from the answer's begin.

    The likeliest tokens of a place include the one that stands there, as in OpenAI's API.
    """
    entries = logprobs["content"]
    tokens = [entry["token"] for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in (*entry["top_logprobs"], entry)}
            for entry in entries
        ],
        "text_offset": list(accumulate(map(len, tokens), initial=0))[: len(tokens)],
    }


def _refusal(record: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    error = record["error"]
    status = _STATUS.get(error["code"], _SERVER_ERROR)
    kind = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    what = {"message": error["message"], "type": kind, "param": None, "code": error["code"]}
    return status, {"error": what}


def _quoted(text: str | None) -> str:
    return "null" if text is None else _PLAIN.encode(text)


def _line(text: str) -> bytes:
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        escaped = _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
        return f"{escaped}\n".encode()
