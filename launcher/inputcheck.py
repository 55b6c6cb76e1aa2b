"""A look at the input before GPUs are used: what would be an error, and how long prompts are.

A sample of constant size: the first rows, and a few rows from each of some units spread evenly
over the data. It reports and refuses nothing.
"""

from __future__ import annotations

import importlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any

from launcher.data.formats import format_of, is_streamed
from launcher.data.prompts import PromptBuilder
from launcher.data.readers import place
from launcher.data.rows import Row, read_unit, sample
from launcher.errors import Problem, RowError
from launcher.plan import grid
from launcher.plan.types import InputFile, RunIdentity
from launcher.prepare import Prepared
from launcher.preview import Messages, final_text

__all__ = ["BadRows", "InputReport", "Lengths", "check_input", "warning_of"]

FIRST_ROWS = 200
SPREAD_ROWS = 200
SPREAD_UNITS = 40
_EACH = SPREAD_ROWS // SPREAD_UNITS
# Lines are counted only so far into a file: beyond, a byte offset has to do.
_COUNTED_BYTES = 4 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRows:
    """Sampled rows that would be errors of one ``code``, and where and what the first is."""

    code: str
    rows: int
    where: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of the sampled prompts; each is the length of one of them."""

    median: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """What a sample says about the input.

    Attributes
    ----------
    rows
        Looked at. ``whole``: they are all there are.
    rows_estimate
        In all of the input, from bytes a row; None where nothing tells.
    bad
        By code, in the order in which they were met.
    tokens
        None without a tokenizer, or where none was wanted.
    context_tokens
        What the model takes, prompt and answer together; None where it is not known.
    over_context
        Prompts that leave no room for one new token; None where that cannot be told.
    duplicate_ids, equal_prompts
        Rows whose id, or whose final prompt, an earlier row of the sample has. Both are legal.
    """

    rows: int
    whole: bool
    rows_estimate: int | None
    bad: tuple[BadRows, ...]
    characters: Lengths | None
    tokens: Lengths | None
    context_tokens: int | None
    over_context: int | None
    duplicate_ids: int
    equal_prompts: int

    @property
    def bad_rows(self) -> int:
        return sum(entry.rows for entry in self.bad)

    @property
    def rows_words(self) -> str:
        """``400 of about 1,200,000 rows``: an estimate is worth two digits."""
        if self.whole or not self.rows_estimate:
            return f"{self.rows} rows"
        digits = 2 - len(str(self.rows_estimate))
        return f"{self.rows} of about {round(self.rows_estimate, digits):,} rows"


@dataclass(frozen=True, slots=True)
class _Final:
    """A final prompt. ``special`` tokens are added by the tokenizer, unless a template did."""

    text: str
    special: bool


def check_input(prepared: Prepared, *, with_tokens: bool = False) -> InputReport:
    """What a sample of the job's input looks like.

    Parameters
    ----------
    with_tokens
        Also count tokens, if the checkpoint has a ``tokenizer.json`` and the package tokenizers
        is installed. That takes seconds.

    Raises
    ------
    RunError
        The input cannot be read; as `launcher.data.rows.sample`.
    """
    identity = prepared.identity
    stretches, whole = _sampled(identity)
    rows = list(chain.from_iterable(stretches))
    ids, finals, failures = _build(prepared, rows)
    model = prepared.resolution.plan.model_path
    tokens = _token_counts(Path(model), finals) if with_tokens and model else None
    context = _context_tokens(Path(model)) if model else None
    over = None if tokens is None or context is None else sum(n >= context for n in tokens)
    return InputReport(
        rows=len(rows),
        whole=whole,
        rows_estimate=len(rows) if whole else _estimate(identity, stretches),
        bad=tuple(_grouped(identity.inputs, failures)),
        characters=_lengths([len(final.text) for final in finals]),
        tokens=_lengths(tokens or []),
        context_tokens=context,
        over_context=over,
        duplicate_ids=len(ids) - len(set(ids)),
        equal_prompts=len(finals) - len({final.text for final in finals}),
    )


def warning_of(report: InputReport) -> Problem | None:
    """The warning about sampled rows that would be errors, if there are any."""
    if not report.bad:
        return None
    first = report.bad[0]
    message = (
        f"{report.bad_rows} of {report.rows} sampled rows would be errors, "
        f"the first at {first.where} ({first.code}): {first.message}"
    )
    hint = "see `hpc-llm plan JOB --check-input`, and correct the rows or the template"
    return Problem("input.bad-rows", message, hint=hint, severity="warning")


def _sampled(identity: RunIdentity) -> tuple[list[list[Row]], bool]:
    """Stretches of neighbouring rows, and whether they are all rows of the run."""
    first = list(islice(_from_the_start(identity), FIRST_ROWS + 1))
    if len(first) <= FIRST_ROWS:
        return [first], True
    first.pop()
    known = (first[-1].file, first[-1].offset)
    spread = (
        [row for row in islice(rows, _EACH) if _place(row) > known] for rows in _spread(identity)
    )
    return [first, *filter(None, spread)], False


def _from_the_start(identity: RunIdentity) -> Iterator[Row]:
    if identity.grid.total_bytes == sum(entry.span for entry in identity.inputs):
        return iter(sample(identity.inputs, FIRST_ROWS + 1))
    # A part of the input (--limit) ends where its last unit does.
    numbers = grid.units(identity.grid)
    return chain.from_iterable(read_unit(identity.inputs, identity.grid, n) for n in numbers)


def _spread(identity: RunIdentity) -> Iterator[Iterable[Row]]:
    """The rows of units evenly over the data, or of the files that can be read from there only."""
    inputs, total = identity.inputs, grid.count(identity.grid)
    starts = list(accumulate((entry.span for entry in inputs), initial=0))
    count = min(SPREAD_UNITS, total)
    seen = set()
    for index in range(count):
        unit = (2 * index + 1) * total // (2 * count)
        file = bisect_right(starts, grid.span(identity.grid, unit)[0], hi=len(inputs)) - 1
        if not is_streamed(inputs[file]):
            yield read_unit(inputs, identity.grid, unit)
        elif file not in seen:
            seen.add(file)
            yield (row._replace(file=file) for row in sample([inputs[file]], _EACH))


def _place(row: Row) -> tuple[int, int]:
    return row.file, row.offset


def _estimate(identity: RunIdentity, stretches: Sequence[Sequence[Row]]) -> int | None:
    """All rows, from the mean distance of neighbours; the first rows count if nothing else does."""
    distances = [
        [
            place(identity.inputs[b.file], b.offset) - place(identity.inputs[a.file], a.offset)
            for a, b in pairwise(rows)
            if a.file == b.file
        ]
        for rows in stretches
    ]
    spread = list(chain.from_iterable(distances[1:])) or distances[0]
    apart = sum(spread)
    return round(identity.grid.total_bytes * len(spread) / apart) if apart else None


def _build(
    prepared: Prepared, rows: Sequence[Row]
) -> tuple[list[str], list[_Final], list[tuple[Row, RowError]]]:
    """Ids, final prompts, and the rows that come to none."""
    identity = prepared.identity
    builder = PromptBuilder(identity.prompt, identity.sampling)
    as_text = final_text(prepared)
    ids: list[str] = []
    finals: list[_Final] = []
    failures: list[tuple[Row, RowError]] = []
    for row in rows:
        try:
            id_, final = _final(builder, row, as_text)
        except RowError as exc:
            failures.append((row, exc))
            continue
        finals.append(final)
        ids += [] if id_ is None else [id_]
    return ids, finals, failures


def _final(
    builder: PromptBuilder, row: Row, as_text: Callable[[Messages], str]
) -> tuple[str | None, _Final]:
    prompt = builder.build(row)
    if prompt.messages is not None:
        return prompt.id, _Final(as_text(prompt.messages), special=False)
    return prompt.id, _Final(prompt.text or "", special=True)


def _grouped(
    inputs: Sequence[InputFile], failures: Sequence[tuple[Row, RowError]]
) -> Iterator[BadRows]:
    counts: dict[str, list[tuple[Row, RowError]]] = {}
    for row, error in failures:
        counts.setdefault(error.code, []).append((row, error))
    for code, group in counts.items():
        row, error = group[0]
        where = _where(inputs[row.file], row.offset)
        yield BadRows(code=code, rows=len(group), where=where, message=error.message)


def _where(entry: InputFile, offset: int) -> str:
    """``file:line`` where that is cheap to tell, else the place as output rows have it."""
    known = format_of(entry.path)
    if known is not None and known.kind == "parquet":
        return f"{entry.path} row {offset}"
    if known is not None and known.packing:
        return f"{entry.path} byte {offset} of its content"
    if offset > _COUNTED_BYTES:
        return f"{entry.path} byte {offset}"
    with open(entry.path, "rb") as file:  # noqa: PTH123 - the path is text
        line = file.read(offset).count(b"\n") + 1
    return f"{entry.path}:{line}"


def _lengths(lengths: Sequence[int]) -> Lengths | None:
    if not lengths:
        return None
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return Lengths(median=ordered[last // 2], p95=ordered[last * 95 // 100], max=ordered[last])


def _token_counts(model: Path, finals: Sequence[_Final]) -> list[int] | None:
    path = model / "tokenizer.json"
    try:
        tokenizers: Any = importlib.import_module("tokenizers")
    except ImportError:
        return None
    if not path.is_file():
        return None
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(tokenizer.encode(f.text, add_special_tokens=f.special).ids) for f in finals]


def _context_tokens(model: Path) -> int | None:
    config: Mapping[str, Any] = json.loads((model / "config.json").read_bytes())
    inner = config.get("text_config")
    for level in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(length := level.get("max_position_embeddings"), int):
            return length
    return None
