"""From the paths of a job file to the frozen manifest."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from launcher.data.inputs import changed, freeze, missing_packages, slow_starts, total_bytes
from launcher.errors import Location, Problem, SpecError
from launcher.plan.types import InputFile

ROOT = Path(__file__).resolve().parents[2]
WHERE = Location("job.yaml", 4, 9, "input.path")
NOBODY = 65534


def write(path: Path, text: str = "{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(base: Path, *paths: str) -> list[str]:
    return [str(Path(entry.path).relative_to(base)) for entry in freeze(paths, base=base)]


def refusal(base: Path, *paths: str) -> Problem:
    with pytest.raises(SpecError) as caught:
        freeze(paths, base=base, where=WHERE)
    (problem,) = caught.value.problems
    assert problem.where == WHERE
    return problem


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's power to read everything, if this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_file_is_taken_with_its_size_and_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "{}\n{}\n")
    (entry,) = freeze(["a.jsonl"], base=tmp_path)
    assert entry.path == str(file)
    assert entry.size == total_bytes([entry]) == 6
    assert entry.mtime_ns == file.stat().st_mtime_ns


def test_a_relative_base_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "jobs" / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    (entry,) = freeze(["a.jsonl"], base=Path("jobs"))
    assert entry.path == str(tmp_path / "jobs" / "a.jsonl")


def test_a_list_is_sorted_and_each_file_taken_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.ndjson", "c.txt"):
        write(tmp_path / name)
    paths = ["c.txt", "b.jsonl", "*.jsonl", str(tmp_path / "a.ndjson"), "b.jsonl"]
    assert names(tmp_path, *paths) == ["a.ndjson", "b.jsonl", "c.txt"]


def test_a_file_behind_a_link_is_taken_once(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    assert names(tmp_path, "*.jsonl") == ["a.jsonl"]


def test_two_dots_are_followed_as_the_system_does(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl")
    write(tmp_path / "elsewhere" / "sub" / "b.jsonl")
    write(tmp_path / "elsewhere" / "a.jsonl", "{}\n{}\n")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere" / "sub")
    assert names(tmp_path, "data/link/../a.jsonl") == ["elsewhere/a.jsonl"]


def test_two_stars_reach_down(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    write(tmp_path / "x" / "y" / "b.jsonl")
    assert names(tmp_path, "**/*.jsonl") == ["a.jsonl", "x/y/b.jsonl"]
    assert names(tmp_path, "*.jsonl") == ["a.jsonl"]


def test_an_absolute_glob_works(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    assert names(tmp_path, f"{tmp_path}/?.jsonl") == ["a.jsonl"]


def test_a_directory_gives_its_supported_files_at_any_depth(tmp_path: Path) -> None:
    for name in ("d/b.jsonl", "d/e/a.TXT", "d/README.md", "d/.hidden.jsonl", "d/.git/c.jsonl"):
        write(tmp_path / name)
    assert names(tmp_path, "d") == ["d/b.jsonl", "d/e/a.TXT"]


def test_a_link_back_up_ends_the_walk(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "more").symlink_to(tmp_path / "d")
    assert names(tmp_path, "d") == ["d/a.jsonl"]


def test_a_linked_directory_is_entered(tmp_path: Path) -> None:
    write(tmp_path / "store" / "a.jsonl")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to(tmp_path / "store")
    assert names(tmp_path, "d") == ["d/link/a.jsonl"]


def test_a_name_that_exists_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl")
    write(tmp_path / "a1.jsonl")
    assert names(tmp_path, "a[1].jsonl") == ["a[1].jsonl"]


def test_two_files_with_one_inode_are_two(tmp_path: Path) -> None:
    # Hard links; and some file systems give inode numbers twice.
    write(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").hardlink_to(tmp_path / "a.jsonl")
    (tmp_path / "c.jsonl").symlink_to("b.jsonl")
    assert names(tmp_path, "*.jsonl") == ["a.jsonl", "b.jsonl"]


def test_every_format_is_found_in_a_directory(tmp_path: Path) -> None:
    packed = {"": b"a\n", ".gz": gzip.compress(b"a\n"), ".zst": zstandard.compress(b"a\n")}
    written = {
        f"d/{kind}{packing}"
        for kind in ("a.jsonl", "a.ndjson", "a.txt", "a.csv", "a.tsv", "B.CSV")
        for packing in packed
    }
    (tmp_path / "d").mkdir()
    for name in written:
        ending = name.lower().rpartition(".")[2]
        (tmp_path / name).write_bytes(packed.get(f".{ending}", b"a\n"))
    assert set(names(tmp_path, "d")) == written


@pytest.mark.parametrize("slow_s", [0.0, 1.0])
def test_many_files_are_frozen_and_compared_as_few_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    monkeypatch.setattr("launcher.data.inputs._SLOW_S", slow_s)  # in threads, and without
    for number in range(1500):
        (tmp_path / f"{number:05}.jsonl").write_bytes(b"{}\n" * (number % 3))
    inputs = freeze([str(tmp_path)], base=tmp_path)
    assert [entry.size for entry in inputs] == [3 * (number % 3) for number in range(1500)]
    assert changed(inputs) == []
    for number in (1, 700, 1499):
        (tmp_path / f"{number:05}.jsonl").unlink()
    assert changed(inputs) == [f"{inputs[n].path}: is gone" for n in (1, 700, 1499)]


def test_freezing_reads_no_plain_file_and_walks_to_no_link_target(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / "d" / f"{number}.jsonl")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from launcher.data.inputs import freeze\n"
        "seen = []\n"
        "real = os.path.realpath\n"
        "os.path.realpath = lambda path: (seen.append(path), real(path))[1]\n"
        "sys.addaudithook(lambda name, args: name == 'open' and seen.append(args[0]))\n"
        "freeze([sys.argv[1]], base=Path('/'))\n"
        "print(*seen)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "d"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "d")]


def test_a_manifest_is_read_back_and_says_no_more_than_needed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"a\n1\n" * 99))
    inputs = freeze(["*.*"], base=tmp_path, newlines=False)
    data = [entry.to_json() for entry in inputs]
    assert [InputFile.from_json(entry) for entry in data] == list(inputs)
    assert [set(entry) for entry in data] == [
        {"path", "size", "mtime_ns"},
        {"path", "size", "mtime_ns", "span", "newlines"},
    ]


def bare_python(script: str) -> list[str]:
    """The lines that ``script`` prints where no package is installed, only this one."""
    blocked = (
        "import sys\n"
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked + script],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_packages_that_are_not_there_are_named_with_a_remedy() -> None:
    lines = bare_python(
        "from launcher.data.inputs import missing_packages\n"
        "from launcher.plan.types import InputFile\n"
        "names = ['a.jsonl', 'b.PARQUET', 'c.parquet', 'd.csv.zst', 'e.gz']\n"
        "files = [InputFile(path=f'/{n}', size=1, mtime_ns=0, span=1) for n in names]\n"
        "for found in missing_packages(files):\n"
        "    print(found.code, found.message.split()[0], found.hint.split()[:2])\n"
        "print(missing_packages(files[:1] + files[4:]))\n"
    )
    assert lines == [
        "input.needs-pyarrow /b.PARQUET ['install', 'pyarrow,']",
        "input.needs-zstandard /d.csv.zst ['install', 'zstandard,']",
        "[]",
    ]


def test_a_submission_needs_a_package_only_for_the_files_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"{}\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    lines = bare_python(
        "from pathlib import Path\n"
        "from launcher.data.inputs import freeze\n"
        "from launcher.errors import SpecError\n"
        "for name in ('*.gz', '*'):\n"
        "    try:\n"
        f"        print(len(freeze([name], base=Path({str(tmp_path)!r}))))\n"
        "    except SpecError as exc:\n"
        "        print(*(problem.code for problem in exc.problems))\n"
    )
    assert lines == ["1", "input.needs-zstandard"]


def test_what_is_here_is_not_missed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"{}\n"))
    assert missing_packages(freeze(["a.jsonl.zst"], base=tmp_path)) == []


def test_large_files_that_are_read_from_their_start_are_warned_about() -> None:
    def file(name: str, size: int, *, newlines: bool = True) -> InputFile:
        return InputFile(path=f"/{name}", size=size, mtime_ns=0, span=size, newlines=newlines)

    large = 2 * 10**9
    fine = [
        file("a.jsonl", large),
        file("b.csv", large, newlines=False),
        file("c.parquet", large),
        file("d.csv.gz", 10**9),
        file("e.csv", 10**9),
    ]
    assert slow_starts(fine) == []
    slow = [file("x.csv", large), file("y.csv.gz", large), file("z.jsonl.zst", 2 * large)]
    packed, quoted = slow_starts([*fine, *slow], WHERE)
    assert {packed.code, quoted.code} == {"input.no-direct-access"}
    assert {packed.severity, quoted.severity} == {"warning"}
    assert packed.message.startswith("/z.jsonl.zst ")
    assert quoted.message.startswith("/x.csv ")
    assert "newlines" in (quoted.hint or "")


def test_empty_files_stay_in_the_manifest(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "")
    write(tmp_path / "b.jsonl")
    assert [entry.size for entry in freeze(["*.jsonl"], base=tmp_path)] == [0, 3]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("prompt.jsonl", "prompts.jsonl"),
        ("dta/a.jsonl", "data"),
        ("promts*.jsonl", "prompts.jsonl"),
    ],
)
def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path, path: str, near: str) -> None:
    write(tmp_path / "prompts.jsonl")
    write(tmp_path / "data" / "a.jsonl")
    problem = refusal(tmp_path, path)
    assert problem.code == "input.missing"
    assert str(tmp_path / path) in problem.message
    assert problem.hint == f"use {tmp_path / near}"


def test_a_dangling_link_in_a_directory_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl")
    (tmp_path / "d" / "b.jsonl").symlink_to("gone")
    assert refusal(tmp_path, "d").code == "input.missing"


@pytest.mark.parametrize(
    "path", ["a.xml", "*.xml", "plain", "a.jsonl.bz2", "a.parquet.gz", "a.gz", "b.json.gz"]
)
def test_other_formats_are_refused_with_the_supported_ones(tmp_path: Path, path: str) -> None:
    for name in ("a.xml", "plain", "a.jsonl.bz2", "a.parquet.gz", "a.gz", "b.json.gz"):
        write(tmp_path / name)
    problem = refusal(tmp_path, path)
    assert problem.code == "input.format"
    assert ".jsonl, .ndjson, .txt, .csv or .tsv" in problem.message
    assert ".parquet" in problem.message


def test_json_is_told_about_one_object_per_line(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "[]")
    problem = refusal(tmp_path, "a.json")
    assert problem.code == "input.format"
    assert "one object per line" in (problem.hint or "")


def test_a_file_without_read_permission_is_unreadable() -> None:
    # The directories of tmp_path are closed to others, and root reads everything.
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        write(base / "a.jsonl").chmod(0)
        with unprivileged():
            problem = refusal(base, "a.jsonl")
    assert problem.code == "input.unreadable"
    assert str(base / "a.jsonl") in problem.message


def test_a_closed_directory_is_unreadable() -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        write(base / "d" / "closed" / "a.jsonl")
        (base / "d" / "closed").chmod(0)
        with unprivileged():
            codes = [refusal(base, path).code for path in ("d", "d/closed/a.jsonl")]
        (base / "d" / "closed").chmod(0o755)
    assert codes == ["input.unreadable", "input.unreadable"]


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert refusal(tmp_path, "a.jsonl").code == "input.unreadable"


def test_no_files_or_no_bytes_are_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "")
    write(tmp_path / "d" / "README.md")
    assert refusal(tmp_path, "a.jsonl").code == "input.empty"
    assert refusal(tmp_path, "d").code == "input.empty"
    assert refusal(tmp_path).code == "input.empty"


def test_every_entry_that_is_wrong_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.xml")
    with pytest.raises(SpecError) as caught:
        freeze(["gone.jsonl", "a.xml"], base=tmp_path)
    assert [problem.code for problem in caught.value.problems] == ["input.missing", "input.format"]


def test_untouched_files_have_not_changed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    assert changed(freeze(["a.jsonl"], base=tmp_path)) == []


def test_each_changed_file_is_a_line_of_the_diff(tmp_path: Path) -> None:
    kept, longer, later, gone = (write(tmp_path / f"{name}.jsonl") for name in "abcd")
    inputs = freeze(["*.jsonl"], base=tmp_path)
    longer.write_text("{}\n{}\n")
    os.utime(later, ns=(0, 0))
    gone.unlink()
    lines = changed(inputs)
    assert [line.partition(":")[0] for line in lines] == [str(longer), str(later), str(gone)]
    assert "3 bytes, is 6" in lines[0]
    assert kept.exists()
