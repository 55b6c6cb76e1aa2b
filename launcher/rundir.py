"""The run directory: its names, and the only ways in which files appear in it.

`publish` makes a file appear whole and only once (the first writer wins, whoever else tries),
`claim` makes one appear for one caller alone, `replace` swaps a small file that one process owns.
Nothing here trusts a listing, a clock or a lock: those differ between the nodes of a parallel file
system.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import OutputError, Problem, SpecError
from launcher.plan.types import Plan, RunIdentity

__all__ = ["RunDir", "claim", "publish", "replace", "sync_directory"]

T = TypeVar("T")

_PART = re.compile(r"u(\d+)\.jsonl")
# What link(2) says where there are no hard links, or none to this file.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
SUBDIRECTORIES = (
    "plans",
    "jobs",
    "lib",
    "control",
    "workers",
    "leases",
    "wal",
    "parts",
    "overlays",
    "logs",
    "metrics",
)


def publish(final: Path, data: bytes | Iterable[bytes]) -> bool:
    """Make ``final`` appear with all of ``data``, or find that somebody else already did.

    Returns
    -------
    bool
        Whether this call created it. On False the file of the first writer stands.

    Notes
    -----
    The data is on disk before its name is, and the name before this returns. ``link`` creates
    or fails; an error of it can follow a success on NFS (link(2), BUGS), so the link count of our
    own file decides. Where a file system has no hard links, ``rename`` takes its place if nothing
    is there: two that do so at the same moment both leave a whole file, and the second stands.
    """
    scratch = _scratch(final, data)
    try:
        created = _link(scratch, final)
        if created is None:
            created = not final.exists()
            if created:
                scratch.rename(final)
    finally:
        scratch.unlink(missing_ok=True)
    sync_directory(final.parent)
    return created


def claim(final: Path, data: bytes) -> bool:
    """Make ``final`` appear for one caller alone, and say whether that is this one.

    A crash of the machine may lose it, or its content. Where a file system has no hard links
    it is created empty and written then.
    """
    scratch = _scratch(final, data, sync=False)
    try:
        created = _link(scratch, final)
    finally:
        scratch.unlink()
    if created is not None:
        return created
    try:
        descriptor = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return True


def _link(scratch: Path, final: Path) -> bool | None:
    """Whether ``final`` is ``scratch`` now; None where there are no hard links."""
    try:
        os.link(scratch, final)
    except OSError as exc:
        if scratch.stat().st_nlink == 2:  # noqa: PLR2004 - its own name and the final one
            return True
        if isinstance(exc, FileExistsError):
            return False
        if exc.errno in _NO_LINKS:
            return None
        raise
    return True


def replace(final: Path, data: bytes, *, sync: bool = True) -> None:
    """Put ``data`` in place of ``final``; a reader sees the old bytes or the new ones.

    ``sync=False`` does not wait for the disk: for what is worth nothing after a crash.
    """
    scratch = _scratch(final, data, sync=sync)
    try:
        scratch.replace(final)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _scratch(final: Path, data: bytes | Iterable[bytes], *, sync: bool = True) -> Path:
    scratch = final.with_name(f".{final.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)  # on NFS this, too, may say that the disk is full
    except BaseException:
        scratch.unlink()
        raise
    return scratch


def sync_directory(directory: Path) -> None:
    """Have on disk the names that were made in ``directory``."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system without this has no way to do better
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run on disk. Reading it never writes."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The run at ``path``.

        Raises
        ------
        SpecError
            ``rundir.missing`` when no run was ever written there.
        """
        run = cls(path.absolute())
        if not run.identity_path.is_file():
            raise SpecError(
                Problem(
                    "rundir.missing",
                    f"{path} is no run directory: it has no run.json",
                    hint="give the job's output.path, or a name from `hpc-llm list`",
                )
            )
        return run

    def create(self) -> None:
        """Make the directory and its subdirectories, as far as they are missing."""
        for name in SUBDIRECTORIES:
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def reopen(self) -> None:
        """Take back what ended the run. Parts decide: one that was deleted is made again."""
        self.create()
        self.stop_path.unlink(missing_ok=True)
        self.done_path.unlink(missing_ok=True)
        for name in ("given-up", "idle"):  # notes of the batch script
            for path in (self.path / "control").glob(f"{name}.*"):
                path.unlink()

    @property
    def identity_path(self) -> Path:
        return self.path / "run.json"

    @property
    def done_path(self) -> Path:
        return self.path / "DONE"

    @property
    def stop_path(self) -> Path:
        return self.path / "control" / "STOP"

    def pass_path(self, overlay: int) -> Path:
        """Where one pass over the input has its parts, leases and logs.

        Overlay 0 is the first pass, over all rows; each other repeats some of their errors.
        """
        return self.path / "overlays" / str(overlay) if overlay else self.path

    def part_path(self, unit: int, overlay: int = 0) -> Path:
        return self.pass_path(overlay) / "parts" / f"u{unit:06}.jsonl"

    def lease_path(self, unit: int, generation: int, overlay: int = 0) -> Path:
        return self.pass_path(overlay) / "leases" / f"u{unit:06}.g{generation}"

    def wal_path(self, unit: int, generation: int, overlay: int = 0) -> Path:
        return self.pass_path(overlay) / "wal" / f"u{unit:06}.g{generation}.wal"

    def overlays(self) -> list[int]:
        """Numbers of the passes that repeat errors, oldest first."""
        found = (path.parent.name for path in (self.path / "overlays").glob("*/overlay.json"))
        return sorted(int(name) for name in found if name.isdigit())

    def create_overlay(self, units: Sequence[int], codes: Sequence[str] | None) -> int:
        """Begin a pass over the errors of ``units``; its number.

        ``codes`` as in `launcher.data.passes.Pass`. The description comes last: a pass is
        there with it, and whole.
        """
        what = json.dumps({"codes": codes, "units": units}).encode()
        number = max(self.overlays(), default=0)
        while True:
            number += 1
            for name in ("parts", "leases", "wal"):
                (self.pass_path(number) / name).mkdir(parents=True, exist_ok=True)
            if publish(self.pass_path(number) / "overlay.json", what):
                return number

    def overlay(self, number: int) -> dict[str, Any]:
        """What one repeats: ``codes`` (None for all) and ``units``, those with such errors."""
        return _read_json(self.pass_path(number) / "overlay.json")

    def plan_path(self, number: str) -> Path:
        return self.path / "plans" / f"{number}.json"

    def engine_path(self, number: str) -> Path:
        """Every argument of the plan's engine, as JSON, for engines that are given them so."""
        return self.path / "plans" / f"{number}.engine.yaml"

    def identity(self) -> RunIdentity:
        return _read(self.identity_path, RunIdentity.from_json)

    def plan(self, number: str) -> Plan:
        return _read(self.plan_path(number), Plan.from_json)

    def newest_plan(self) -> Plan:
        """The plan of the last submission.

        Raises
        ------
        OutputError
            ``rundir.damaged`` when there is none.
        """
        numbers = self.plan_numbers()
        if not numbers:
            raise OutputError(Problem("rundir.damaged", f"{self.path} holds no plan"))
        return self.plan(numbers[-1])

    def plan_numbers(self) -> list[str]:
        """Numbers of all plans, oldest first."""
        found = (path.stem for path in (self.path / "plans").glob("*.json"))
        return sorted((n for n in found if n.isdigit()), key=int)

    def published_units(self, overlay: int = 0) -> set[int]:
        """Units whose part is out, from one listing and no stat."""
        directory = self.pass_path(overlay) / "parts"
        try:
            with os.scandir(directory) as entries:
                return {int(m[1]) for e in entries if (m := _PART.fullmatch(e.name))}
        except FileNotFoundError as exc:
            problem = Problem("rundir.damaged", f"{directory} is missing")
            raise OutputError(problem) from exc

    def jobs(self) -> list[dict[str, Any]]:
        """Every job of this run: those submitted, and those started by hand, oldest first.

        Each has at least ``id`` and ``process``: of what was started by hand in an allocation
        that outlives it, or on a machine without a scheduler; else None.
        """
        found = {e["id"]: e for e in map(_read_json, (self.path / "jobs").glob("*.submitted"))}
        submitted = set(found)
        for entry in self.registrations():
            id_ = entry["job"]
            if id_.partition("_")[0] not in submitted:  # of several starts the newest counts
                process = None if entry.get("batch") else entry["process"]
                found[id_] = {"id": id_, "process": process, "submitted": entry["started"]}
        return sorted(found.values(), key=lambda entry: (entry["submitted"], entry["id"]))

    def open_intents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """``(nonce, intent)`` of each submission whose job was not noted."""
        directory = self.path / "jobs"
        noted = {_read_json(path).get("nonce") for path in directory.glob("*.submitted")}
        for path in sorted(directory.glob("*.intent")):
            if path.stem not in noted:
                yield path.stem, _read_json(path)

    def registrations(self) -> list[dict[str, Any]]:
        """What each start of a job has written about itself, oldest first."""
        found = [_read_json(p) for p in (self.path / "jobs").glob("*.json")]
        return sorted(found, key=lambda entry: (entry["started"], entry["job"], entry["restart"]))

    def outcome_path(self, job: str, restart: int, replica: int, outcome: str) -> Path:
        """The file that says how one step ended; the batch script looks for it by name."""
        return self.path / "jobs" / f"{job}.{restart}.s{replica}.{outcome}"

    def world_path(self, job: str, restart: int, replica: int) -> Path:
        """Where the first rank of a step under MPI says that there is one.

        The batch script looks for it when no rank has left an outcome.
        """
        return self.path / "control" / f"{job}.{restart}.s{replica}.world"

    def figures_path(self, job: str, restart: int, replica: int) -> Path:
        """Where the wrapper of a first rank says what it has heard of the engine's KV cache."""
        return self.path / "control" / f"{job}.{restart}.s{replica}.figures"

    def preflight_path(self, job: str, restart: int, replica: int) -> Path:
        """What the first rank of a step found of all ranks before it started the engine."""
        return self.path / "control" / f"{job}.{restart}.s{replica}.preflight"

    def links_path(self, job: str, restart: int, replica: int) -> Path:
        """How fast the links between the ranks of a step were before it started the engine."""
        return self.path / "control" / f"{job}.{restart}.s{replica}.links"

    def network_path(self, job: str, restart: int, replica: int, rank: int) -> Path:
        """Where a rank's wrapper says what NCCL uses between nodes, and what is wrong with it."""
        return self.path / "control" / f"{job}.{restart}.s{replica}.r{rank}.network"

    def networks(self, job: str, restart: int) -> list[dict[str, Any]]:
        """What the ranks of one start of a job say there: the first one, and those that warn."""
        pattern = f"{_globbed(job)}.{restart}.s*.r*.network"
        return [_read_json(path) for path in sorted((self.path / "control").glob(pattern))]

    def outcomes(self, job: str, restart: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """``(outcome, details)`` of each ended step of one start of a job."""
        for path in sorted((self.path / "jobs").glob(f"{_globbed(job)}.{restart}.s*.*")):
            yield path.suffix[1:], _read_json(path)


def _globbed(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _read(path: Path, make: Callable[[dict[str, Any]], T]) -> T:
    data = _read_json(path)
    try:
        return make(data)
    except (KeyError, TypeError, ValueError) as exc:
        what = f"{path} does not hold what this version writes there: {exc!r}"
        raise OutputError(Problem("rundir.damaged", what)) from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise OutputError(Problem("rundir.damaged", f"cannot read {path}: {exc}")) from exc
    if not isinstance(data, dict):
        raise OutputError(Problem("rundir.damaged", f"{path} does not hold an object"))
    return data
