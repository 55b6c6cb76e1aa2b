"""``manifest.json``: what a complete run has produced, so that a later change can be proved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from launcher.data.inputs import changed
from launcher.data.rows import UnitReader
from launcher.errors import OutputError, Problem
from launcher.plan.types import RunIdentity
from launcher.report.reading import Counts, FileFacts, Place, Reading, check_complete, damaged
from launcher.rundir import RunDir, replace

__all__ = ["SCHEMA", "Verified", "manifest_path", "verify", "write_manifest"]

SCHEMA = 1
_BLOCK_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found to be as it should be.

    Attributes
    ----------
    compared
        Whether there was a manifest to compare with.
    warnings
        Merged files that are gone, overlays that are newer than the manifest, and a retry of
        errors that has not ended.
    """

    counts: Counts
    compared: bool
    warnings: tuple[Problem, ...]


def manifest_path(run: RunDir) -> Path:
    """Where the manifest of ``run`` is."""
    return run.path / "manifest.json"


def write_manifest(run: RunDir, counts: Counts, merged: Sequence[FileFacts] = ()) -> Problem | None:
    """Write what a pass over all of a complete run has counted.

    Files merged earlier stay listed while the parts are the same.

    Returns
    -------
    Problem or None
        A warning where RUN cannot be written: its results can be read all the same.
    """
    manifest = _manifest(run.identity(), counts)
    earlier = _read(run) or {}
    if earlier.get("parts") == manifest["parts"]:
        manifest["merged"] = [*earlier["merged"]]
    new = [{**dataclasses.asdict(f), "path": str(Path(f.path).absolute())} for f in merged]
    paths = {entry["path"] for entry in new}
    manifest["merged"] = [e for e in manifest["merged"] if e["path"] not in paths] + new
    text = json.dumps(manifest, indent=1, ensure_ascii=True) + "\n"
    try:
        replace(manifest_path(run), text.encode())
    except OSError as exc:
        message = f"cannot write {manifest_path(run)}: {exc.strerror}"
        return Problem("output.unwritable", message, severity="warning")
    return None


def verify(run: RunDir) -> Verified:
    """Read all of a run again and compare it with its manifest and with its input.

    Raises
    ------
    OutputError
        ``output.incomplete``; ``output.damaged`` naming the part or merged file that is not
        what the manifest says, or the input row that has no answer or an answer that has no
        input row; ``input.changed`` when the input cannot tell any more.
    """
    retrying = check_complete(run)
    reading = Reading(run)
    if differences := changed(reading.identity.inputs):
        hint = "restore the files to verify against them; the answers are those to the old ones"
        raise OutputError(Problem("input.changed", "; ".join(differences[:5]), hint=hint))
    manifest = _read(run)
    noted = _by_path(manifest["parts"]) if manifest else {}
    with UnitReader(reading.identity.inputs, reading.identity.grid) as asked:
        for unit in reading.units:
            known = len(reading.counts.parts)
            _compare_unit(reading, unit, asked)
            _compare_parts(run, reading.counts.parts[known:], noted)
    warnings = _compare_rest(run, reading, manifest) if manifest else []
    return Verified(
        counts=reading.counts,
        compared=manifest is not None,
        warnings=(*retrying, *warnings),
    )


def _manifest(identity: RunIdentity, counts: Counts) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": identity.name,
        "model": {"name": identity.model.name, "digest": identity.model.digest},
        "plans": sorted(counts.plans),
        "counts": {"ok": counts.ok, "error": dict(sorted(counts.error.items()))},
        "tokens": {"prompt": counts.prompt_tokens, "completion": counts.completion_tokens},
        "units": sum(facts.path.startswith("parts/") for facts in counts.parts),
        "parts": [dataclasses.asdict(facts) for facts in _sorted(counts.parts)],
        "merged": [],
    }


def _sorted(parts: Iterable[FileFacts]) -> list[FileFacts]:
    return sorted(parts, key=lambda facts: facts.path)


def _read(run: RunDir) -> dict[str, Any] | None:
    path = manifest_path(run)
    try:
        found = json.loads(path.read_bytes())
        for entry in (*found["parts"], *found["merged"]):
            FileFacts(**entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as exc:
        hint = "delete it: the next `hpc-llm results` writes another"
        problem = Problem("output.damaged", f"{path} is no manifest: {exc!r}", hint=hint)
        raise OutputError(problem) from exc
    manifest: dict[str, Any] = found
    return manifest


def _by_path(entries: Iterable[Mapping[str, Any]]) -> dict[str, FileFacts]:
    return {entry["path"]: FileFacts(**entry) for entry in entries}


def _compare_unit(reading: Reading, unit: int, asked: UnitReader) -> None:
    """The rows of one unit against the input's."""
    wanted = ((row.file, row.offset) for row in asked.read(unit))
    answered = (found.place for found in reading.of_unit(unit))
    for place, other in zip_longest(wanted, answered):
        if place != other:
            what = _difference(reading.identity, place, other)
            raise damaged(reading.run.part_path(unit), what)


def _difference(identity: RunIdentity, wanted: Place | None, answered: Place | None) -> str:
    missing = answered is None or (wanted is not None and wanted < answered)
    file, offset = (wanted if missing else answered) or (0, 0)
    row = f"the row at {offset} of {identity.inputs[file].path}"
    return f"{row} is missing" if missing else f"{row} is answered, and the input has none there"


def _compare_parts(run: RunDir, parts: Iterable[FileFacts], noted: Mapping[str, FileFacts]) -> None:
    for facts in parts:
        before = noted.get(facts.path, facts)
        if facts != before:
            what = f"changed since manifest.json: {_change(before, facts)}"
            raise damaged(run.path / facts.path, what)


def _change(before: FileFacts, now: FileFacts) -> str:
    if before.bytes != now.bytes:
        return f"{before.rows} rows in {before.bytes} bytes were {now.rows} in {now.bytes}"
    return f"sha256 was {before.sha256}, is {now.sha256}"


def _compare_rest(run: RunDir, reading: Reading, manifest: Mapping[str, Any]) -> list[Problem]:
    """What no part alone shows: parts that are gone or new, counts, and merged files."""
    noted = _by_path(manifest["parts"])
    now = {facts.path for facts in reading.counts.parts}
    for path in sorted(noted.keys() - now):
        raise damaged(run.path / path, "is in manifest.json, and gone")
    warnings = [_newer(run, path) for path in sorted(now - noted.keys())]
    own = _manifest(reading.identity, reading.counts)
    for key in () if warnings else ("name", "model", "plans", "counts", "tokens", "units"):
        if manifest.get(key) != own[key]:
            what = f"{key} is {manifest.get(key)}, and the parts say {own[key]}"
            hint = "delete it: the next `hpc-llm results` writes another"
            problem = Problem("output.damaged", f"{manifest_path(run)}: {what}", hint=hint)
            raise OutputError(problem)
    return warnings + [p for entry in manifest["merged"] if (p := _merged_gone(entry))]


def _newer(run: RunDir, path: str) -> Problem:
    message = f"{run.path / path} is newer than manifest.json"
    hint = f"`hpc-llm results {run.path}` writes the manifest anew"
    return Problem("output.damaged", message, hint=hint, severity="warning")


def _merged_gone(entry: Mapping[str, Any]) -> Problem | None:
    path = Path(entry["path"])
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as exc:
        message = f"{path}, a merged file, cannot be read: {exc.strerror}"
        return Problem("output.damaged", message, severity="warning")
    if digest.hexdigest() != entry["sha256"]:
        message = f"{path}, a merged file, changed since manifest.json"
        raise OutputError(Problem("output.damaged", message, hint="merge the run again"))
    return None
