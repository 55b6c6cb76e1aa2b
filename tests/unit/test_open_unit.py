"""One unit from its first row to its part, by one owner or several."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_making import json_lines, make_identity, make_run

from launcher.data.open_unit import OpenUnit
from launcher.data.wal import Record
from launcher.errors import OutputError
from launcher.rundir import RunDir, publish


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", make_identity(tmp_path, json_lines([{"text": "a"}] * 99)))


def record(place: int, *, ok: bool = True) -> Record:
    return Record((0, place), ok, 1, 2, f"row {place}\n".encode())


def logs(run: RunDir) -> list[str]:
    return sorted(path.name for path in (run.path / "wal").iterdir())


def answered(unit: OpenUnit, places: list[int], *, done: list[int]) -> list[int]:
    """Add rows and finish those of ``done``; the places of those that were to be answered."""
    asked = []
    for place in places:
        index = unit.add((0, place))
        if index is not None:
            asked.append(place)
            if place in done:
                unit.finish(index, record(place, ok=place != 13))
    return asked


def test_rows_finished_in_any_order_come_out_in_that_of_the_input(run: RunDir) -> None:
    unit = OpenUnit(run, 0, 1)
    indices = {place: unit.add((0, place)) for place in (1, 5, 13)}
    unit.all_read = True
    for place in (13, 1, 5):
        assert not unit.complete
        unit.finish(indices[place] or 0, record(place, ok=place != 13))
    assert unit.complete
    counts = unit.publish()
    assert counts is not None
    assert (counts.ok, counts.error, counts.prompt_tokens, counts.completion_tokens) == (2, 1, 2, 4)
    assert run.part_path(0).read_bytes() == b"row 1\nrow 5\nrow 13\n"
    assert logs(run) == []


def test_an_heir_answers_only_what_its_predecessors_had_not_logged(run: RunDir) -> None:
    places = [1, 2, 3, 4]
    first = OpenUnit(run, 0, 1)
    answered(first, places, done=[1, 3])
    first.flush(sync=True)
    first.close()
    second = OpenUnit(run, 0, 2)
    assert answered(second, places, done=[4]) == [2, 4]
    second.flush(sync=False)
    second.close()
    assert logs(run) == ["u000000.g1.wal", "u000000.g2.wal"]
    third = OpenUnit(run, 0, 3)
    assert answered(third, places, done=[2]) == [2]
    third.all_read = True
    counts = third.publish()
    assert counts is not None
    assert counts.ok == 4
    assert run.part_path(0).read_bytes() == b"".join(b"row %d\n" % n for n in places)
    assert logs(run) == []


def test_what_was_not_flushed_dies_with_its_owner(run: RunDir) -> None:
    answered(OpenUnit(run, 0, 1), [1, 2], done=[1, 2])
    assert answered(OpenUnit(run, 0, 2), [1, 2], done=[]) == [1, 2]


def test_rows_that_a_log_has_and_the_unit_has_not_are_left_out(run: RunDir) -> None:
    stranger = OpenUnit(run, 0, 1)
    answered(stranger, [1, 99], done=[1, 99])
    stranger.flush(sync=False)
    unit = OpenUnit(run, 0, 2)
    assert answered(unit, [1, 2], done=[2]) == [2]
    unit.all_read = True
    unit.publish()
    assert run.part_path(0).read_bytes() == b"row 1\nrow 2\n"


def test_the_part_of_another_stands_and_our_log_goes(run: RunDir) -> None:
    unit = OpenUnit(run, 0, 1)
    answered(unit, [1], done=[1])
    unit.flush(sync=False)
    unit.all_read = True
    publish(run.part_path(0), b"theirs\n")
    assert unit.publish() is None
    assert run.part_path(0).read_bytes() == b"theirs\n"
    assert logs(run) == []


def test_a_log_that_went_without_a_part_costs_nothing_but_the_work(run: RunDir) -> None:
    first = OpenUnit(run, 0, 1)
    answered(first, [1, 2], done=[1])
    first.flush(sync=False)
    second = OpenUnit(run, 0, 2)
    assert answered(second, [1, 2], done=[2]) == [2]
    second.all_read = True
    run.wal_path(0, 1).unlink()
    assert second.publish() is None
    assert not run.part_path(0).exists()
    assert answered(OpenUnit(run, 0, 3), [1, 2], done=[]) == [1, 2]


def test_rows_out_of_order_are_never_published(run: RunDir) -> None:
    unit = OpenUnit(run, 0, 1)
    answered(unit, [2, 2], done=[2])
    unit.all_read = True
    with pytest.raises(OutputError) as caught:
        unit.publish()
    assert [p.code for p in caught.value.problems] == ["run.disorder"]
    assert not run.part_path(0).exists()


def test_a_large_part_is_written_in_pieces_from_memory_and_logs(run: RunDir) -> None:
    line = b"x" * 400_000 + b"\n"
    unit = OpenUnit(run, 0, 1)
    for place in range(9):
        index = unit.add((0, place))
        assert index == place
        unit.finish(index, Record((0, place), True, 1, 1, b"%d" % place + line))
        if place % 2:
            unit.flush(sync=False)
    unit.all_read = True
    unit.publish()
    assert run.part_path(0).read_bytes() == b"".join(b"%d" % n + line for n in range(9))


# --- units that are shared ------------------------------------------------------------------------


def test_the_last_of_several_waits_for_what_others_have_begun_and_makes_the_part(
    run: RunDir,
) -> None:
    first = OpenUnit(run, 0, 1)
    assert answered(first, [2, 4], done=[2]) == [2, 4]
    assert first.begun == [(0, 2), (0, 4)]
    first.flush(sync=True)
    first.share()
    last = OpenUnit(run, 0, 3, elsewhere={(0, 2): "a", (0, 4): "a"})
    assert answered(last, [1, 2, 3, 4], done=[1]) == [1, 3]
    last.all_read = True
    assert (last.awaited, last.only_awaits) == (["a"], False)
    last.finish(2, record(3))
    assert (last.only_awaits, last.complete) == (True, False)
    assert last.finished_elsewhere() == []
    first.finish(1, record(4))
    first.flush(sync=False)
    last.adopt(last.finished_elsewhere())
    assert last.complete
    assert not last.only_awaits
    assert last.publish()
    assert run.part_path(0).read_bytes() == b"row 1\nrow 2\nrow 3\nrow 4\n"
    assert logs(run) == []


def test_who_only_begins_rows_waits_for_nobody_else(run: RunDir) -> None:
    second = OpenUnit(run, 0, 3, elsewhere={(0, 2): "a"})
    assert answered(second, [2, 3], done=[]) == [3]
    second.share()
    second.all_read = True
    assert (second.awaited, second.complete, second.only_awaits) == ([], False, False)
    second.finish(1, record(3))
    assert second.complete
