"""Every file of the corpus: a valid one reads, an invalid one has just the faults it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.spec.rules import read_job, read_site
from launcher.spec.source import Source, parse

CORPUS = Path(__file__).parent.parent / "corpus"
EXPECT = re.compile(r"# expect: (\S+) ([0-9]+):([0-9]+)")
READERS: dict[str, Callable[[Source], object]] = {"job": read_job, "site": read_site}


def files(state: str) -> list[str]:
    return sorted(str(path.relative_to(CORPUS)) for path in CORPUS.glob(f"*/{state}/*.yaml"))


def read(name: str) -> object:
    text = (CORPUS / name).read_bytes().decode("utf-8")
    return READERS[name.split("/", maxsplit=1)[0]](parse(name, text))


def expected(name: str) -> list[tuple[str, int, int]]:
    found = []
    for line in (CORPUS / name).read_text(encoding="utf-8").splitlines():
        match = EXPECT.fullmatch(line)
        if match is None:
            break
        found.append((match[1], int(match[2]), int(match[3])))
    return found


@pytest.mark.parametrize("name", files("valid"))
def test_a_valid_file_reads(name: str) -> None:
    read(name)


@pytest.mark.parametrize("name", files("invalid"))
def test_an_invalid_file_has_the_faults_it_names_and_no_others(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(name)
    problems = caught.value.problems
    found = [(p.code, p.where.line, p.where.column) for p in problems if p.where]
    assert found == expected(name)
    assert len(found) == len(problems) > 0
    assert {p.where.path for p in problems if p.where} == {name}


@pytest.mark.parametrize("name", files("invalid"))
def test_a_message_is_short_printable_and_ends_without_a_full_stop(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(name)
    for problem in caught.value.problems:
        assert problem.message.isprintable()
        assert not problem.message.endswith(".")
        assert len(problem.message) < 250


def test_quoted_numbers_and_yaml_1_1_words_stay_text() -> None:
    job = read_job(
        parse("f", (CORPUS / "job/valid/yaml-1.2-scalars.yaml").read_text(encoding="utf-8"))
    )
    assert (job.name, job.model, job.input.path) == ("no", "on", "010")
    assert (job.resources.account, job.resources.partition) == ("2024-01-01", "0x10")
    assert job.resources.time == 129600
