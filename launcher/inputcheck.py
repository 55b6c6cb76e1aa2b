"""What the sample of an input says before GPUs are used: bad rows, and how long prompts are."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from launcher.chat import Messages, final_text
from launcher.data.formats import format_of, is_streamed
from launcher.data.inputs import total_bytes
from launcher.data.prompts import Prompt, PromptBuilder, row_problems
from launcher.data.rows import Row
from launcher.data.sample import EACH, PLACES, Sample
from launcher.errors import Location, Problem, RowError
from launcher.plan.outlook import Range
from launcher.plan.sampling import Stretch, mean_of, rows_in
from launcher.plan.types import InputFile, RunIdentity
from launcher.plan.workload import CHARACTERS_PER_TOKEN

__all__ = ["BadRows", "InputReport", "Lengths", "SampledPrompts", "build_prompts", "warning_of"]

T = TypeVar("T")
# Factor by which rows may be more or less where files are known by their first rows alone.
_HEADS_ONLY = 1.25
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPrompts:
    """The rows of a run's sample as prompts, made once.

    Attributes
    ----------
    where
        Place in the job file that problems of its template point to.
    ids, finals
        Of the rows that come to a prompt; ``finals`` by file and coordinate.
    failures
        The rows that would be errors.
    refused
        The errors among these that the rows or the job's own template are the cause of, and not
        the checkpoint's chat template.
    """

    identity: RunIdentity
    sample: Sample
    where: Location | None
    ids: list[str]
    finals: dict[tuple[int, int], _Final]
    failures: list[tuple[Row, RowError]]
    refused: list[RowError]

    def problems(self) -> list[Problem]:
        """What `row_problems` says of the sample."""
        return row_problems(self.refused, self.sample.rows, where=self.where)

    def report(self) -> InputReport:
        """What the sample says about the input, no tokens counted. It refuses nothing."""
        sample, model = self.sample, self.identity.model.path
        texts = [final.text for final in self.finals.values()]
        most = {key: final.most_new_tokens for key, final in self.finals.items()}
        lengths = {key: final.about_tokens for key, final in self.finals.items()}
        return InputReport(
            rows=len(sample.rows),
            whole=sample.whole,
            rows_range=_rows(self.identity.inputs, sample),
            bad=tuple(_grouped(self.identity.inputs, self.failures)),
            characters=_lengths(list(map(len, texts))),
            tokens=None,
            prompt_tokens=_mean(sample, lengths),
            prompt_p95=_share(sorted(lengths.values()), 95) if lengths else None,
            counted=False,
            most_new_tokens=_mean(sample, most),
            largest_new_tokens=max(most.values(), default=None),
            context_tokens=_context_tokens(Path(model)) if model else None,
            over_context=None,
            duplicate_ids=len(self.ids) - len(set(self.ids)),
            equal_prompts=len(texts) - len(set(texts)),
        )

    def counted(self, report: InputReport) -> InputReport:
        """``report`` with tokens in the place of guesses, which takes seconds.

        As it was if the checkpoint has no ``tokenizer.json`` or the package tokenizers is missing.
        """
        model, context = self.identity.model.path, report.context_tokens
        tokens = _token_counts(Path(model), self.finals) if model else None
        if not tokens:
            return report
        return replace(
            report,
            tokens=_lengths(list(tokens.values())),
            prompt_tokens=_mean(self.sample, tokens),
            prompt_p95=_share(sorted(tokens.values()), 95),
            counted=True,
            over_context=context and sum(count >= context for count in tokens.values()),
        )


def build_prompts(
    identity: RunIdentity, sample: Sample, *, where: Location | None = None
) -> SampledPrompts:
    """The prompts of a run's sample.

    Raises
    ------
    SpecError
        The template of the prompt is wrong.
    """
    builder = PromptBuilder(identity.prompt, identity.sampling, where=where)
    as_text = final_text(identity.model.path)
    built = SampledPrompts(
        identity=identity, sample=sample, where=where, ids=[], finals={}, failures=[], refused=[]
    )
    for row in sample.rows:
        try:
            prompt = builder.build(row)
        except RowError as exc:
            built.refused.append(exc)
            built.failures.append((row, exc))
            continue
        try:
            built.finals[_key(row)] = _final(prompt, as_text)
        except RowError as exc:
            built.failures.append((row, exc))
            continue
        built.ids.extend([] if prompt.id is None else [prompt.id])
    return built


def warning_of(report: InputReport, causes: Sequence[Problem]) -> Problem | None:
    """The warning about sampled rows that would be errors, if there are any; ``causes`` has why."""
    if not report.bad:
        return None
    first = report.bad[0]
    message = (
        f"{report.bad_rows} of {report.rows} sampled rows would be errors, "
        f"the first at {first.where} ({first.code}): {first.message}"
    )
    cause = next(iter(causes), None)
    what = cause.hint if cause and cause.hint else "correct the rows or the template"
    return Problem(
        "input.bad-rows",
        message,
        where=cause.where if cause else None,
        hint=f"{what}; `plan --check-input` counts each kind",
        severity="warning",
    )


def _key(row: Row) -> tuple[int, int]:
    return row.file, row.offset


def _stretches(sample: Sample, values: Mapping[tuple[int, int], float]) -> list[Stretch]:
    """The places as numbers, those that stand for something or, if none does, the first rows."""
    found = []
    for number, at in enumerate(sample.places):
        rows, begins = at.rows, at.begins
        if not rows or (not at.share_bytes and len(sample.places) > 1):
            continue
        if not number and len(sample.places) > 1:
            # Of the first rows as many as of other places: they are no more typical than those.
            among = max(1, round(PLACES * at.share_bytes / sample.extent_bytes)) * EACH
            rows, begins = rows[:among], begins[:among]
        found.append(
            Stretch(
                file=rows[0].file,
                share_bytes=at.share_bytes,
                gaps_bytes=tuple(b - a for a, b in pairwise(begins)),
                values=tuple(values[_key(row)] for row in rows if _key(row) in values),
            )
        )
    return found


def _rows(inputs: Sequence[InputFile], sample: Sample) -> Range | None:
    """All rows, as far as a sample tells, and no fewer than were looked at."""
    seen = len(sample.rows)
    if sample.whole:
        return Range.exactly(seen)
    told = [entry.rows for entry in inputs if entry.rows is not None]
    if len(told) == len(inputs) and sample.extent_bytes == total_bytes(inputs):
        return Range.exactly(sum(told))
    found = rows_in(_stretches(sample, {}), sample.extent_bytes)
    if found is None:
        return None
    found = found * Range.around(1.0, _HEADS_ONLY if any(map(is_streamed, inputs)) else 1.0)
    return Range(*(max(seen, round(value)) for value in (found.least, found.likely, found.most)))


def _mean(sample: Sample, values: Mapping[tuple[int, int], float]) -> Range | None:
    """The mean of a value over all rows."""
    if sample.whole:
        return Range.exactly(sum(values.values()) / len(values)) if values else None
    return mean_of(_stretches(sample, values))


def _final(prompt: Prompt, as_text: Callable[[Messages], str]) -> _Final:
    most = prompt.sampling.max_tokens
    if prompt.messages is not None:
        return _Final(text=as_text(prompt.messages), special=False, most_new_tokens=most)
    tokens = None if prompt.tokens is None else len(prompt.tokens)
    return _Final(text=prompt.text or "", special=True, most_new_tokens=most, tokens=tokens)


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
