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

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"
GPUS = '{time_limit: 1h, gpus: {model: h100, per_node: 4, request: "--gres=gpu:{n}"}}'
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
    errors = [p.code for p in caught.value.problems if p.severity == "error"]
    assert errors == ["plan.mount"]


def test_a_container_sees_all_of_the_hubs_cache_and_where_it_really_lies(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = job.parent / "big/hub/models--org--small"
    for name in ("refs", "blobs", "snapshots/abc"):
        (entry / name).mkdir(parents=True)
    (entry / "refs/main").write_text("abc")
    (entry / "blobs/1").write_bytes((CONFIGS / "llama-3.1-8b.json").read_bytes())
    (entry / "snapshots/abc/config.json").symlink_to("../../blobs/1")
    (job.parent / "user").mkdir()
    (job.parent / "user/hf").symlink_to("../big")
    monkeypatch.setenv("HF_HOME", str(job.parent / "user/hf"))
    settings = ["engine=vllm", "model=org/small", "input.chat=false", "parallelism={tp: 1}"]
    site = job.parent / "gpus.yaml"
    site.write_text(SITE.replace("{time_limit: 1h}", GPUS))
    mounts = prepare(job, site=str(site), settings=settings).resolution.plan.runtime.mounts
    assert {str(job.parent / "user/hf/hub"), str(job.parent / "big/hub")} <= set(mounts)
    assert not any("snapshots" in mount or "blobs" in mount for mount in mounts)


# --- what an image says of itself


def sif(path: Path, arch: bytes) -> Path:
    """The head of a SIF file as apptainer/sif, pkg/sif/sif.go, has it."""
    launch = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0")
    path.write_bytes(launch + b"SIF_MAGIC\0" + b"01\0" + arch + b"\0" + bytes(80))
    return path


@pytest.mark.parametrize(
    ("arch", "cpus", "fits"),
    [(b"02", "x86_64", True), (b"04", "x86_64", False), (b"02", "aarch64", False)],
)
def test_an_image_for_other_cpus_is_refused(
    job: Path, arch: bytes, cpus: str, *, fits: bool
) -> None:
    image = sif(job.parent / "i.sif", arch)
    (job.parent / "site.yaml").write_text(
        SITE.replace("pyxis", "apptainer").replace("1h", f"1h, cpus: {{count: 8, arch: {cpus}}}")
    )
    settings = [f"runtime.image={image}"]
    if fits:
        assert prepare(job, site=str(job.parent / "site.yaml"), settings=settings).warnings == ()
        return
    with pytest.raises(PlanError) as caught:
        prepare(job, site=str(job.parent / "site.yaml"), settings=settings)
    (problem,) = caught.value.problems
    assert problem.code == "plan.image-architecture"
    assert problem.hint is not None
    assert cpus in problem.hint


def test_an_image_that_is_not_here_or_says_nothing_is_taken(job: Path) -> None:
    (job.parent / "site.yaml").write_text(SITE.replace("1h", "1h, cpus: {count: 8, arch: aarch64}"))
    (job.parent / "i.sqsh").write_bytes(b"hsqs")
    for image in ("nvcr.io#nvidia/x:1", "/gone.sif", str(job.parent / "i.sqsh")):
        settings = [f"runtime.image={image}"]
        assert prepare(job, site=str(job.parent / "site.yaml"), settings=settings).warnings == ()
