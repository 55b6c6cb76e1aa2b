"""Which directories a container is shown."""

from __future__ import annotations

import doctest
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launcher.plan.mounts
from launcher.errors import PlanError
from launcher.plan.mounts import complete_mounts
from launcher.prepare import prepare

names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join).map("/".__add__)

SITE = """
name: s
scheduler: {type: slurm}
launch: {with: srun, mpi: pmix}
container: {runtime: pyxis}
partitions: {p: {time_limit: 1h}}
"""
JOB = """
name: j
engine: echo
model: none
input: {path: data/link.jsonl, prompt: "{{ a }}"}
output: {path: out}
runtime: {image: /i.sqsh}
"""


@pytest.fixture
def job(tmp_path: Path, own_home: Path) -> Path:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "job.yaml").write_text(JOB)
    for name in ("data", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "store/real.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "data/link.jsonl").symlink_to("../store/real.jsonl")
    return tmp_path / "job.yaml"


def test_the_examples_of_the_module_hold() -> None:
    assert doctest.testmod(launcher.plan.mounts).failed == 0


@given(st.lists(names, max_size=3), st.lists(names, max_size=6))
def test_every_place_is_shown_and_none_twice(mounts: list[str], reads: list[str]) -> None:
    found = complete_mounts(tuple(mounts), reads)
    assert found[: len(mounts)] == tuple(mounts)
    for place in reads:
        assert any(PurePosixPath(place).is_relative_to(mount) for mount in found)
    added = [PurePosixPath(mount) for mount in found[len(mounts) :]]
    for one in added:
        assert not any(one.is_relative_to(m) for m in mounts)
        assert not any(one.is_relative_to(two) for two in added if two is not one)


def test_a_container_sees_the_input_and_what_its_links_lead_to(job: Path) -> None:
    mounts = prepare(job, site=str(job.parent / "site.yaml")).resolution.plan.runtime.mounts
    assert set(mounts) == {str(job.parent / "data"), os.path.realpath(job.parent / "store")}


def test_without_an_image_nothing_is_mounted(job: Path) -> None:
    settings = ["runtime={}"]
    found = prepare(job, site=str(job.parent / "site.yaml"), settings=settings)
    assert found.resolution.plan.runtime.mounts == ()


def test_a_place_that_no_mount_can_name_is_refused(job: Path) -> None:
    (job.parent / "a,b").mkdir()
    (job.parent / "a,b/in.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(PlanError) as caught:
        prepare(job, site=str(job.parent / "site.yaml"), settings=["input.path='a,b/in.jsonl'"])
    assert [p.code for p in caught.value.problems] == ["plan.mount"]
