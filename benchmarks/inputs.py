"""What reading the input costs as it grows: ratios, each of two things timed in the same minute.

    python benchmarks/inputs.py [--files N]

The first ratio says how much a submission adds to what the system itself takes to name the files
and tell their sizes. The others say whether the end of the input is as near as its beginning; one
for each format, and for formats that are streams with a reader that has read all that lies before.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from launcher.data.inputs import changed, freeze, total_bytes
from launcher.data.rows import UnitReader, read_unit
from launcher.plan.grid import count, make_grid
from launcher.plan.types import InputFile, UnitGrid

__all__: list[str] = []

ROUNDS = 5
UNITS = 20  # read at either end of the input


def median_s(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes, the median of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def many_files(folder: Path, files: int) -> None:
    """``files`` files of one to three rows in directories of a thousand."""
    for number in range(files):
        if number % 1000 == 0:
            (folder / f"{number // 1000:05}").mkdir()
        path = folder / f"{number // 1000:05}" / f"{number:07}.jsonl"
        path.write_bytes(b'{"text": "hello", "n": %d}\n' % number * (number % 3 + 1))


def large_files(folder: Path) -> dict[str, tuple[InputFile, ...]]:
    """One file of some tens of MB for each format."""
    records = [f'{n},"hello, {n * n}"' for n in range(1_000_000)]
    lines = "".join(f'{{"n": {n}, "text": "hello {n * n}"}}\n' for n in range(1_000_000)).encode()
    table = ("n,text\n" + "\n".join(records)).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    (folder / "a.csv").write_bytes(table)
    (folder / "promised.csv").write_bytes(table)
    names = ["a.jsonl", "a.jsonl.gz", "a.csv", "promised.csv"]
    return {name: freeze([name], base=folder, newlines=name != "promised.csv") for name in names}


def stat_all(folder: Path) -> None:
    """The least that a manifest takes: every name, size and time."""
    for parent in os.scandir(folder):
        for entry in os.scandir(parent.path):
            os.stat(entry.path)  # noqa: PTH116 - no more than what is to be timed


def per_row_s(inputs: Sequence[InputFile], units: range) -> float:
    """Seconds a row of ``units`` takes a reader that stands right before them."""
    grid = make_grid(total_bytes(inputs))
    times = []
    for _ in range(ROUNDS):
        with UnitReader(inputs, grid) as reader:
            if units.start:
                list(reader.read(units.start - 1))
            started = time.perf_counter()
            rows = sum(1 for unit in units for _ in reader.read(unit))
            times.append((time.perf_counter() - started) / rows)
    return statistics.median(times)


def end_to_beginning(inputs: Sequence[InputFile]) -> float:
    total = count(make_grid(total_bytes(inputs)))
    # Both of full-sized units: those of the last tenth are smaller.
    last = int(total * 0.6)
    return per_row_s(inputs, range(last, last + UNITS)) / per_row_s(inputs, range(UNITS))


def cold_end(inputs: Sequence[InputFile]) -> float:
    """Time of one late unit as a multiple of the first one, each with a reader of its own."""
    grid = make_grid(total_bytes(inputs))
    late = int(count(grid) * 0.6)
    first_s, last_s = (median_s(partial(all_rows, inputs, grid, unit)) for unit in (0, late))
    return last_s / first_s


def all_rows(inputs: Sequence[InputFile], grid: UnitGrid, unit: int) -> int:
    return sum(1 for _ in read_unit(inputs, grid, unit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "many").mkdir()
        many_files(folder / "many", files)
        least_s = median_s(lambda: stat_all(folder / "many"))
        frozen_s = median_s(lambda: freeze(["many"], base=folder))
        inputs = freeze(["many"], base=folder)
        lines = [json.dumps(entry.to_json()) for entry in inputs]
        print(f"{files} files: freeze / scandir+stat       {frozen_s / least_s:6.1f}")
        changed_s = median_s(lambda: changed(inputs))
        print(f"{files} files: changed / scandir+stat      {changed_s / least_s:6.1f}")
        opened_s = median_s(lambda: UnitReader(inputs, make_grid(total_bytes(inputs))))
        print(f"{files} files: new UnitReader / scandir+stat {opened_s / least_s:4.2f}")
        print(f"{files} files: run.json, bytes a file      {sum(map(len, lines)) / files:6.0f}")
        print(f"{files} files: a row at the end / beginning {end_to_beginning(inputs):5.2f}")
        for form, large in large_files(folder).items():
            print(f"{form:13} a row at the end / beginning {end_to_beginning(large):6.2f}")
            print(f"{form:13} a unit entered there / first {cold_end(large):6.2f}")


if __name__ == "__main__":
    main()
