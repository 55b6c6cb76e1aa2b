"""A look at the input before GPUs are used: what would be an error, and how long prompts are.

A sample of constant size: the first rows, and a few rows from each of some units spread evenly
over the data. It reports and refuses nothing.
"""

from __future__ import annotations

import importlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

from launcher.chat import Messages, final_text
from launcher.data.formats import format_of, is_streamed
from launcher.data.prompts import PromptBuilder
from launcher.data.readers import place
from launcher.data.rows import Row, UnitReader, read_unit, sample
from launcher.errors import Problem, RowError
from launcher.plan import grid
from launcher.plan.outlook import Range
from launcher.plan.sampling import Stretch, mean_of, rows_in
from launcher.plan.types import InputFile, RunIdentity
from launcher.plan.workload import CHARACTERS_PER_TOKEN

__all__ = ["BadRows", "InputReport", "Lengths", "check_input", "warning_of"]

T = TypeVar("T")
FIRST_ROWS = 200
SPREAD_ROWS = 200
SPREAD_UNITS = 40
_EACH = SPREAD_ROWS // SPREAD_UNITS
# Factor by which rows may be more or less where files are known by their first rows alone.
_HEADS_ONLY = 1.25
# So many are read through where rows are longer than they are.
_MOST_UNITS = 200
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
    rows_range
        In all of the input, from bytes a row; None where nothing tells.
    bad
        By code, in the order in which they were met.
    tokens
        None without a tokenizer, or where none was wanted.
    prompt_tokens, prompt_p95, counted
        Mean of all rows, and what 95 % of the sample have at most: ``counted`` by a tokenizer, or
        by so many characters for each token; None where no row is a prompt.
    most_new_tokens, largest_new_tokens
        What rows may get at the most: its mean, and the most of the sample.
    context_tokens
        What the model takes, prompt and answer together; None where it is not known.
    over_context
        Prompts that leave no room for one new token; None where that cannot be told.
    duplicate_ids, equal_prompts
        Rows whose id, or whose final prompt, an earlier row of the sample has. Both are legal.
    """

    rows: int
    whole: bool
    rows_range: Range | None
    bad: tuple[BadRows, ...]
    characters: Lengths | None
    tokens: Lengths | None
    prompt_tokens: Range | None
    prompt_p95: float | None
    counted: bool
    most_new_tokens: Range | None
    largest_new_tokens: int | None
    context_tokens: int | None
    over_context: int | None
    duplicate_ids: int
    equal_prompts: int

    @property
    def bad_rows(self) -> int:
        return sum(entry.rows for entry in self.bad)

    @property
    def rows_estimate(self) -> int | None:
        return None if self.rows_range is None else round(self.rows_range.likely)

    @property
    def rows_words(self) -> str:
        """``400 of about 1,200,000 rows``: an estimate is worth two digits."""
        if self.whole or not self.rows_estimate:
            return f"{self.rows} rows"
        digits = 2 - len(str(self.rows_estimate))
        return f"{self.rows} of about {round(self.rows_estimate, digits):,} rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Final:
    """A final prompt. ``special`` tokens are added by the tokenizer, unless a template did.

    ``tokens`` is how many it has, where the row brings them.
    """

    text: str
    special: bool
    most_new_tokens: int
    tokens: int | None = None

    @property
    def about_tokens(self) -> float:
        if self.tokens is not None:
            return self.tokens
        return max(1.0, len(self.text) / CHARACTERS_PER_TOKEN)


def check_input(
    identity: RunIdentity, model_path: str | None, *, with_tokens: bool = False
) -> InputReport:
    """What a sample of a run's input looks like.

    Parameters
    ----------
    model_path
        The checkpoint's directory, if there is one.
    with_tokens
        Also count tokens, if the checkpoint has a ``tokenizer.json`` and the package tokenizers
        is installed. That takes seconds.

    Raises
    ------
    SpecError
        The template of the prompt is wrong.
    RunError
        The input cannot be read; as `launcher.data.rows.sample`.
    """
    sampled, whole = _sampled(identity)
    rows = list(chain.from_iterable(place.rows for place in sampled))
    built = _build(identity, final_text(model_path), rows)
    finals = list(built.finals.values())
    model = Path(model_path) if model_path else None
    tokens = _token_counts(model, built.finals) if with_tokens and model else None
    context = _context_tokens(model) if model else None
    over = None if tokens is None or context is None else sum(n >= context for n in tokens.values())
    lengths: Mapping[tuple[int, int], float] = tokens or {
        key: final.about_tokens for key, final in built.finals.items()
    }
    most = {key: final.most_new_tokens for key, final in built.finals.items()}
    about = _exact if whole else partial(_mean, identity, sampled)
    return InputReport(
        rows=len(rows),
        whole=whole,
        rows_range=Range.exactly(len(rows)) if whole else _rows(identity, sampled),
        bad=tuple(_grouped(identity.inputs, built.failures)),
        characters=_lengths([len(final.text) for final in finals]),
        tokens=_lengths(list((tokens or {}).values())),
        prompt_tokens=about(lengths),
        prompt_p95=_share(sorted(lengths.values()), 95) if lengths else None,
        counted=tokens is not None,
        most_new_tokens=about(most),
        largest_new_tokens=max(most.values(), default=None),
        context_tokens=context,
        over_context=over,
        duplicate_ids=len(built.ids) - len(set(built.ids)),
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Neighbouring rows, how much of the input they stand for, and where the next row would be."""

    rows: list[Row]
    share_bytes: float
    end: int | None = None


def _sampled(identity: RunIdentity) -> tuple[list[_Place], bool]:
    """Stretches of neighbouring rows, and whether they are all rows of the run."""
    first = list(islice(_from_the_start(identity), FIRST_ROWS + 1))
    if len(first) <= FIRST_ROWS:
        return [_Place(first, identity.grid.total_bytes)], True
    first.pop()
    known = _key(first[-1])
    spread = list(_spread(identity))
    apart = [replace(place, rows=rows) for place in spread if (rows := _behind(place.rows, known))]
    # The first rows stand for the places that lie among them, and no more of them than from there.
    inside = sum(place.share_bytes for place in spread) - sum(p.share_bytes for p in apart)
    return [_Place(first, inside), *apart], False


def _behind(rows: Sequence[Row], known: tuple[int, int]) -> list[Row]:
    return [row for row in rows if _key(row) > known]


def _from_the_start(identity: RunIdentity) -> Iterator[Row]:
    if identity.grid.total_bytes == sum(entry.span for entry in identity.inputs):
        return iter(sample(identity.inputs, FIRST_ROWS + 1))
    # A part of the input (--limit) ends where its last unit does.
    numbers = grid.units(identity.grid)
    return chain.from_iterable(read_unit(identity.inputs, identity.grid, n) for n in numbers)


def _spread(identity: RunIdentity) -> Iterator[_Place]:
    """Rows from units evenly over the data, or of the files that can be read from there only."""
    inputs, total = identity.inputs, grid.count(identity.grid)
    starts = _starts(identity)
    count = min(SPREAD_UNITS, total)
    units = [(2 * index + 1) * total // (2 * count) for index in range(count)]
    begins = [grid.span(identity.grid, unit)[0] for unit in units]
    # Units of the last tenth are smaller: each place stands for the bytes around it.
    edges = [0, *((a + b) // 2 for a, b in pairwise(begins)), identity.grid.total_bytes]
    streamed: dict[int, float] = {}
    for (unit, until), begin, (low, high) in zip(
        pairwise([*units, total]), begins, pairwise(edges), strict=True
    ):
        file = bisect_right(starts, begin, hi=len(inputs)) - 1
        if is_streamed(inputs[file]):
            streamed[file] = streamed.get(file, 0.0) + high - low
        else:
            rows = _rows_from(identity, unit, until)
            # Where no other row begins this one is as long as what was read, or longer.
            end = grid.span(identity.grid, _until(unit, until) - 1)[1] if len(rows) == 1 else None
            yield _Place(rows, high - low, end)
    for file, share_bytes in streamed.items():
        heads = [row._replace(file=file) for row in sample([inputs[file]], _EACH)]
        yield _Place(heads, share_bytes, starts[file + 1] if len(heads) < _EACH else None)


def _rows_from(identity: RunIdentity, unit: int, until: int) -> list[Row]:
    """The next rows from the start of ``unit`` on; one may be longer than several units."""
    with UnitReader(identity.inputs, identity.grid) as reader:
        units = range(unit, _until(unit, until))
        return list(islice(chain.from_iterable(map(reader.read, units)), _EACH))


def _until(unit: int, until: int) -> int:
    return min(until, unit + _MOST_UNITS)


def _starts(identity: RunIdentity) -> list[int]:
    return list(accumulate((entry.span for entry in identity.inputs), initial=0))


def _key(row: Row) -> tuple[int, int]:
    return row.file, row.offset


def _stretches(
    identity: RunIdentity, places: Sequence[_Place], values: Mapping[tuple[int, int], float]
) -> list[Stretch]:
    """The places as numbers, those that stand for something or, if none does, the first rows."""
    starts = _starts(identity)
    found = []
    for number, at in enumerate(places):
        if not at.rows or (not at.share_bytes and len(places) > 1):
            continue
        # Of the first rows as many as of other places: they are no more typical than those.
        among = round(SPREAD_UNITS * at.share_bytes / identity.grid.total_bytes)
        rows = at.rows[: max(1, among) * _EACH] if not number and len(places) > 1 else at.rows
        begins = [
            starts[row.file] + place(identity.inputs[row.file], row.offset) for row in rows
        ] + ([at.end] if at.end is not None else [])
        found.append(
            Stretch(
                file=rows[0].file,
                share_bytes=at.share_bytes,
                gaps_bytes=tuple(b - a for a, b in pairwise(begins)),
                values=tuple(values[_key(row)] for row in rows if _key(row) in values),
            )
        )
    return found


def _exact(values: Mapping[tuple[int, int], float]) -> Range | None:
    return Range.exactly(sum(values.values()) / len(values)) if values else None


def _rows(identity: RunIdentity, places: Sequence[_Place]) -> Range | None:
    """All rows, as far as a sample tells, and no fewer than were looked at."""
    told = [entry.rows for entry in identity.inputs if entry.rows is not None]
    if len(told) == len(identity.inputs) and identity.grid.total_bytes == _starts(identity)[-1]:
        return Range.exactly(sum(told))
    found = rows_in(_stretches(identity, places, {}), identity.grid.total_bytes)
    if found is None:
        return None
    seen = sum(len(at.rows) for at in places)
    heads_only = any(is_streamed(entry) for entry in identity.inputs)
    found = found * Range.around(1.0, _HEADS_ONLY if heads_only else 1.0)
    return Range(*(max(seen, round(value)) for value in (found.least, found.likely, found.most)))


def _mean(
    identity: RunIdentity, places: Sequence[_Place], values: Mapping[tuple[int, int], float]
) -> Range | None:
    """The mean of a value over all rows."""
    return mean_of(_stretches(identity, places, values))


@dataclass(frozen=True, slots=True)
class _Built:
    """Ids, final prompts by their rows, and the rows that come to none."""

    ids: list[str]
    finals: dict[tuple[int, int], _Final]
    failures: list[tuple[Row, RowError]]


def _build(
    identity: RunIdentity, as_text: Callable[[Messages], str], rows: Sequence[Row]
) -> _Built:
    builder = PromptBuilder(identity.prompt, identity.sampling)
    built = _Built([], {}, [])
    for row in rows:
        try:
            id_, final = _final(builder, row, as_text)
        except RowError as exc:
            built.failures.append((row, exc))
            continue
        built.finals[_key(row)] = final
        built.ids.extend([] if id_ is None else [id_])
    return built


def _final(
    builder: PromptBuilder, row: Row, as_text: Callable[[Messages], str]
) -> tuple[str | None, _Final]:
    prompt = builder.build(row)
    most = prompt.sampling.max_tokens
    if prompt.messages is not None:
        return prompt.id, _Final(text=as_text(prompt.messages), special=False, most_new_tokens=most)
    tokens = None if prompt.tokens is None else len(prompt.tokens)
    return prompt.id, _Final(
        text=prompt.text or "", special=True, most_new_tokens=most, tokens=tokens
    )


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
    return Lengths(median=_share(ordered, 50), p95=_share(ordered, 95), max=ordered[-1])


def _share(ordered: Sequence[T], percent: int) -> T:
    """What so many of the values have at most."""
    return ordered[(len(ordered) - 1) * percent // 100]


def _token_counts(
    model: Path, finals: Mapping[tuple[int, int], _Final]
) -> dict[tuple[int, int], int] | None:
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

    def count(final: _Final) -> int:
        if final.tokens is not None:
            return final.tokens
        return len(tokenizer.encode(final.text, add_special_tokens=final.special).ids)

    return {key: count(final) for key, final in finals.items()}


def _context_tokens(model: Path) -> int | None:
    config: Mapping[str, Any] = json.loads((model / "config.json").read_bytes())
    inner = config.get("text_config")
    for level in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(length := level.get("max_position_embeddings"), int):
            return length
    return None
