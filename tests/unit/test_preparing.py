"""Rows made into requests in other processes, against the same made in this one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dispatching import LIMIT_S
from run_making import json_lines, make_identity, make_plan, make_run

import launcher
from launcher.errors import HpcLlmError, RowError, RunError
from launcher.plan.grid import units
from launcher.plan.types import RunIdentity, UnitGrid
from launcher.runner.preparing import InProcesses, InThread, Rows
from launcher.runner.ready import Prepared

# Tokens are bytes, and one text is refused.
TOKENIZER = """
    class AutoTokenizer:
        @classmethod
        def from_pretrained(cls, path, local_files_only):
            if path is None:
                raise OSError("no such model")
            return cls()

        def encode(self, text, add_special_tokens):
            if "refused" in text:
                raise ValueError("not this one")
            return list(text.encode())
"""


@pytest.fixture(autouse=True)
def transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of that name, for the processes that make tokens."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "transformers.py").write_text(textwrap.dedent(TOKENIZER))
    path = os.pathsep.join([str(folder), str(Path(launcher.__file__).parents[1])])
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's directory, in which replicas work."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(
    folder: Path, rows: Sequence[dict[str, Any]], unit_bytes: int | None = None, **changes: Any
) -> RunIdentity:
    data = json_lines(rows)
    size = unit_bytes or len(data)
    cut = UnitGrid(
        total_bytes=len(data), unit_bytes=size, head_units=-(-len(data) // size), tail_bytes=size
    )
    prompt = changes.pop("prompt", "{{ text }}")
    identity = make_identity(folder, data, grid=cut, prompt=prompt)
    make_run(folder, identity, plans={"0001": make_plan(**{"model_path": "model", **changes})})
    return identity


async def batches(rows: Rows, of: Sequence[int]) -> list[list[list[Prepared]]]:
    """By unit."""
    found: list[list[list[Prepared]]] = []
    try:
        for unit in of:
            found.append([])
            while batch := await asyncio.wait_for(rows.some(unit), LIMIT_S):
                found[-1].append(batch)
    finally:
        rows.close()
    return found


def as_text(prepared: Prepared) -> tuple[Any, ...]:
    """What does not depend on who made the tokens."""
    if prepared.request is None:
        assert prepared.error is not None
        return (*prepared.head, prepared.error.code, prepared.error.message)
    request = prepared.request
    text = request.text if request.tokens is None else bytes(list(request.tokens)).decode()
    return (*prepared.head, request.id, text, request.sampling)


def children() -> set[int]:
    """Processes that this one started and has not waited for."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


ROWS = [
    {"text": f"row {n} ü" + "x" * (n % 50), "id": n} if n % 7 else {"other": n} for n in range(1000)
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_of_processes_are_those_of_a_thread_in_input_order(here: Path, count: int) -> None:
    """Over units of several batches, of one, and of none, and units that end with a batch."""
    # 64 equal rows are a unit of one full batch; the long one leaves units without a row.
    even = [{"text": f"{n:04}"} for n in range(64 * 4)]
    size = len(json_lines(even[:64]))
    rows = [*even, *ROWS, {"text": "y" * 5 * size}]
    identity = run_of(here, rows, size)
    every = list(units(identity.grid))
    mine = asyncio.run(batches(InThread(identity), every))
    theirs = asyncio.run(batches(InProcesses(["0001"], count), every))
    shapes = [[len(batch) for batch in unit] for unit in mine]
    assert shapes[:4] == [[64]] * 4
    assert [] in shapes
    assert [[len(batch) for batch in unit] for unit in theirs] == shapes
    flat = [as_text(p) for unit in theirs for batch in unit for p in batch]
    assert flat == [as_text(p) for unit in mine for batch in unit for p in batch]
    assert len(flat) == len(rows)


@pytest.mark.parametrize("count", [1, 3])
def test_a_unit_of_many_batches_comes_in_order_and_may_come_twice(here: Path, count: int) -> None:
    identity = run_of(here, ROWS, len(json_lines(ROWS)) // 2 + 1)
    mine = asyncio.run(batches(InThread(identity), [0, 1, 0]))
    theirs = asyncio.run(batches(InProcesses(["0001"], count), [0, 1, 0]))
    assert len(mine[0]) > 6
    flat = [[as_text(p) for batch in unit for p in batch] for unit in theirs]
    assert flat == [[as_text(p) for batch in unit for p in batch] for unit in mine]
    assert flat[0] == flat[2]


def test_tokens_are_made_and_counted_there_and_a_refused_row_is_an_error(here: Path) -> None:
    run_of(here, [{"text": "abü"}, {"text": "refused"}, {"prompt": [5, 6]}], prompt="{{ text }}")
    [[[first, refused, lacking]]] = asyncio.run(batches(InProcesses(["0001"], 2), [0]))
    assert first.request is not None
    assert first.request.text is None
    assert list(first.request.tokens or ()) == [97, 98, 195, 188]
    assert first.size == 4
    assert isinstance(refused.error, RowError)
    assert refused.error.code == "engine_error"
    assert refused.error.message == "the tokenizer failed: ValueError: not this one"
    assert lacking.error is not None
    assert lacking.error.code == "missing_field"


# --- what goes wrong ----------------------------------------------------------------------------


def failure(count: int = 2, of: Sequence[int] = (0,), *, gone_first: bool = False) -> HpcLlmError:
    async def failing() -> None:
        before = children()
        rows = InProcesses(["0001"], count)
        if gone_first:
            for pid in children() - before:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - nothing else runs
        await batches(rows, of)

    with pytest.raises(HpcLlmError) as caught:
        asyncio.run(failing())
    return caught.value


def test_an_input_that_changed_is_told_as_it_is(here: Path) -> None:
    run_of(here, ROWS)
    (here / "in.jsonl").write_bytes(b'{"text": "a"}\n')
    found = failure()
    assert isinstance(found, RunError)
    assert [p.code for p in found.problems] == ["input.changed"]


def test_an_input_that_is_gone_is_told_as_it_is(here: Path) -> None:
    run_of(here, ROWS)
    (here / "in.jsonl").unlink()
    assert [p.code for p in failure().problems] == ["input.unreadable"]


def test_a_template_that_is_not_well_formed_is_told_as_it_is(here: Path) -> None:
    run_of(here, ROWS, prompt="{{ text ")
    assert [p.code for p in failure().problems] == ["input.template"]


@pytest.mark.parametrize("gone_first", [False, True])
def test_a_tokenizer_that_cannot_be_read_is_told_however_long_ago(
    here: Path,
    gone_first: bool,  # noqa: FBT001 - a case
) -> None:
    """An engine takes minutes to start; the processes have ended by then."""
    run_of(here, ROWS, model_path=None)
    [problem] = failure(gone_first=gone_first).problems
    assert (problem.code, problem.message) == (
        "engine.model",
        "cannot read the tokenizer of None: OSError: no such model",
    )


@pytest.mark.parametrize("count", [1, 3])
def test_a_killed_process_ends_the_work_and_nothing_waits_for_it(here: Path, count: int) -> None:
    run_of(here, ROWS * 20)

    async def killed() -> None:
        before = children()
        rows = InProcesses(["0001"], count)
        try:
            assert await asyncio.wait_for(rows.some(0), LIMIT_S)
            os.kill(max(children() - before), signal.SIGKILL)
            while await asyncio.wait_for(rows.some(0), LIMIT_S):
                pass
        finally:
            rows.close()

    with pytest.raises(RunError) as caught:
        asyncio.run(killed())
    [problem] = caught.value.problems
    assert (problem.code, problem.message) == (
        "run.died",
        "a process that prepares prompts ended with code -9",
    )


def test_closing_leaves_no_process_and_frees_who_waits_for_one(here: Path) -> None:
    run_of(here, ROWS * 20)
    before = children()

    async def closed() -> None:
        rows = InProcesses(["0001"], 2)
        assert len(children() - before) == 2
        waiting = asyncio.ensure_future(rows.some(0))
        await asyncio.sleep(0)
        rows.close()
        await asyncio.wait([waiting], timeout=LIMIT_S)
        assert waiting.done()
        assert isinstance(waiting.exception(), RunError)

    asyncio.run(closed())
    assert children() == before


# Signals its whole process group when the first batch is there, then counts the rows.
SIGNALLED = """
    import asyncio, os, signal, sys
    from launcher.runner.preparing import InProcesses

    async def count():
        rows, found = InProcesses(["0001"], 2), 0
        while batch := await rows.some(0):
            if not found:
                os.killpg(0, getattr(signal, sys.argv[1]))
            found += len(batch)
        rows.close()
        return found

    for name in ("SIGUSR1", "SIGTERM"):
        signal.signal(getattr(signal, name), lambda *_: None)
    print(asyncio.run(count()))
"""


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_to_the_whole_step_does_not_end_them_before_their_replica(
    here: Path, name: str
) -> None:
    run_of(here, ROWS * 5)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SIGNALLED), name],
        start_new_session=True,
        capture_output=True,
        check=True,
        timeout=LIMIT_S,
    )
    assert (done.stdout, done.stderr) == (b"5000\n", b"")


# Dies without a word as soon as the first batch is there.
DYING = """
    import asyncio, os, signal
    from launcher.runner.preparing import InProcesses

    async def die():
        rows = InProcesses(["0001"], 2)
        await rows.some(0)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(die())
"""


def test_they_end_with_a_replica_that_is_killed_and_say_nothing(here: Path) -> None:
    run_of(here, ROWS * 5)
    # The pipe for what they say is theirs too: it ends when the last of them has.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DYING)],
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


def test_who_takes_nothing_holds_them_back_at_what_the_pipe_holds(here: Path) -> None:
    """They have read no more than that of a unit that is far larger."""
    rows = [{"text": f"{n}" + "x" * 2000} for n in range(20_000)]
    run_of(here, rows)
    total = (here / "in.jsonl").stat().st_size

    def place() -> int:
        [found] = [
            int(line.split()[1])
            for pid in children() - before
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if fd.resolve().name == "in.jsonl"
            for line in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().splitlines()
            if line.startswith("pos:")
        ]
        return found

    before = children()

    async def held_back() -> int:
        found = InProcesses(["0001"], 1)
        try:
            assert await asyncio.wait_for(found.some(0), LIMIT_S)
            deadline = asyncio.get_running_loop().time() + LIMIT_S
            seen = -1
            while (now := place()) != seen:
                assert asyncio.get_running_loop().time() < deadline
                seen = now
                await asyncio.sleep(0.2)  # long enough for one that is not held back to go on
            return seen
        finally:
            found.close()

    assert asyncio.run(held_back()) < total // 8
