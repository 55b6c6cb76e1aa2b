"""The rows of a run as files for other programs: JSONL, Parquet, or OpenAI's batch form."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from launcher.data.records import encode, to_openai
from launcher.errors import OutputError, Problem
from launcher.plan.types import PromptSpec
from launcher.report.files import NewFile, NewFiles
from launcher.report.reading import Counts, FileFacts, Found, Reading
from launcher.rundir import RunDir

__all__ = ["Format", "Merged", "merge"]

Format = Literal["jsonl", "parquet", "openai"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was read, of a ``complete`` run or not, and the files, in input order, errors last."""

    counts: Counts
    complete: bool
    files: tuple[FileFacts, ...]


class _Sink(Protocol):
    """Takes the rows of one file; nothing more is written once the block ends by an error."""

    def __enter__(self) -> _Sink: ...  # noqa: PYI034 - Self is not in 3.10
    def write(self, found: Found) -> None: ...
    def __exit__(self, kind: object, *_: object) -> None: ...


def merge(run: RunDir, target: Path, form: Format, *, files: int = 1) -> Merged:
    """Write all rows to ``target``, or to so many ``<name>-00000-of-00004<suffix>``.

    Files are cut between units and hold about as many bytes each, in input order. All of them
    appear together once they are whole and on disk, in place of older ones. The OpenAI form has
    the failed rows of all in one more file, ``<name>.errors<suffix>``.

    Parameters
    ----------
    files
        At least 1.

    Raises
    ------
    OutputError
        As `Reading.rows`; ``output.unwritable``; ``output.needs-pyarrow``.
    """
    reading = Reading(run)
    try:
        with NewFiles() as new:
            made = _write(reading, new, target, form, files)
    except OSError as exc:
        problem = Problem("output.unwritable", f"cannot write {target}: {exc.strerror or exc}")
        raise OutputError(problem) from exc
    facts = tuple(file.facts for file in made)
    return Merged(counts=reading.counts, complete=reading.complete, files=facts)


def _write(
    reading: Reading, new: NewFiles, target: Path, form: Format, files: int
) -> list[NewFile]:
    targets = [_numbered(target, number, files) for number in range(files)]
    groups = _cut([_size(reading.run, unit) for unit in reading.units], files)
    errors = new.open(_errors(target)) if form == "openai" else None
    made = []
    for name, group in zip(targets, groups, strict=True):
        made.append(new.open(name))
        with _sink(form, made[-1], errors, reading) as sink:
            for index in group:
                for found in reading.of_unit(reading.units[index]):
                    sink.write(found)
        made[-1].finish()
    return made if errors is None else [*made, errors]


def _sink(form: Format, file: NewFile, errors: NewFile | None, reading: Reading) -> _Sink:
    if form == "parquet":
        from launcher.report.parquet import ParquetSink  # noqa: PLC0415 - pyarrow is an extra

        return ParquetSink(file)
    if errors is None:
        return _JsonLines(file)
    return _OpenAi(file, errors, reading)


class _Lines(abc.ABC):
    """What the forms of one line a row share."""

    def __enter__(self) -> _Lines:  # noqa: PYI034 - as above
        return self

    @abc.abstractmethod
    def write(self, found: Found) -> None:
        """Take the next row."""

    def __exit__(self, kind: object, *_: object) -> None:  # noqa: B027 - most forms end with nothing
        pass


class _JsonLines(_Lines):
    def __init__(self, file: NewFile) -> None:
        self._file = file

    def write(self, found: Found) -> None:
        self._file.write(found.line)
        self._file.rows += 1


class _OpenAi(_Lines):
    def __init__(self, good: NewFile, bad: NewFile, reading: Reading) -> None:
        self._good, self._bad = good, bad
        self._prompt = reading.identity.prompt
        self._model = reading.identity.model.name
        self._created_s = _ended_s(reading)

    def write(self, found: Found) -> None:
        row = found.row
        chat = row["status"] == "ok" and _was_chat(self._prompt, row["response"])
        line = to_openai(row, model=self._model, created_s=self._created_s, chat=chat)
        file = self._good if row["status"] == "ok" else self._bad
        file.write(encode(line))
        file.rows += 1


def _was_chat(prompt: PromptSpec, response: Mapping[str, Any]) -> bool:
    """Whether the row went through the chat template: only its own line can ask for less."""
    by_the_job = prompt.prompt is not None or prompt.messages
    return prompt.chat and (bool(by_the_job) or response.get("object") != "text_completion")


def _ended_s(reading: Reading) -> int:
    """When the run ended, as unix time: the same each time that its rows are written."""
    run = reading.run
    ends = (run.done_path, *(run.part_path(unit) for unit in reading.units[-1:]))
    return next((int(path.stat().st_mtime) for path in ends if path.exists()), 0)


def _numbered(target: Path, number: int, files: int) -> Path:
    if files == 1:
        return target
    return target.with_name(f"{target.stem}-{number:05}-of-{files:05}{target.suffix}")


def _errors(target: Path) -> Path:
    return target.with_name(f"{target.stem}.errors{target.suffix}")


def _size(run: RunDir, unit: int) -> int:
    return run.part_path(unit).stat().st_size


def _cut(sizes: Sequence[int], files: int) -> list[list[int]]:
    """Indices of ``sizes`` in so many groups of neighbours, of about the same sum each."""
    groups: list[list[int]] = [[] for _ in range(files)]
    total, before = max(1, sum(sizes)), 0
    for index, size in enumerate(sizes):
        middle = 2 * before + size
        groups[min(files - 1, middle * files // (2 * total))].append(index)
        before += size
    return groups
