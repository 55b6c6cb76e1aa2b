"""Prompts that are longer than the model takes, cut as the job says."""

from __future__ import annotations

from launcher.plan.types import TooLong
from launcher.runner.ready import Prepared

__all__ = ["fitted"]


def fitted(prepared: Prepared, max_seq_len: int | None, too_long: TooLong) -> Prepared:
    """``prepared`` with a prompt that fits, and what was cut off counted; itself if it fits.

    A prompt is too long when it leaves no token for the answer. It is then cut so that the
    answer may have all it was granted, though never more than half of ``max_seq_len``. Only
    token ids can be cut; of other prompts the engine says that they are too long.
    """
    request = prepared.request
    if too_long == "error" or max_seq_len is None or request is None or request.tokens is None:
        return prepared
    count = len(request.tokens)
    if count < max_seq_len:
        return prepared
    kept = max(1, max_seq_len - min(request.sampling.max_tokens, max_seq_len // 2))
    tokens = request.tokens[-kept:] if too_long == "truncate-left" else request.tokens[:kept]
    head = prepared.head._replace(truncated=count - kept)
    return Prepared(head, request._replace(tokens=tokens), size=kept)
