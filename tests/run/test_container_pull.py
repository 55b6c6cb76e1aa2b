"""Images that are brought to one file, by stand-ins for Apptainer and enroot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_driving import Cli, Done, poll, write_job
from fake_slurm import FakeSlurm

from launcher import pull
from launcher.errors import RunError
from launcher.schedulers.slurm import SlurmScheduler

TOOLS = Path(__file__).parents[1] / "fakes/images"
IMAGE = "docker://nvcr.io/nvidia/tensorrt-llm/release:1.2.0"
STEM = "nvidia+tensorrt-llm+release+1.2.0"


class Scene:
    """A user of a site, its tools, and a directory for images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images, self.tools = folder, folder / "images", folder / "tools"
        self.tools.mkdir()
        (folder / "slurm").mkdir()
        (folder / "home").mkdir()
        self.slurm = FakeSlurm(folder / "slurm")
        self._extra = {
            **self.slurm.environ,
            "PATH": f"{TOOLS}:{self.slurm.environ['PATH']}",
            "FAKE_IMAGES": str(self.tools),
            "HPC_LLM_IMAGES": str(self.images),
        }
        self.site()

    def site(self, runtime: str = "apptainer", arch: str | None = None, **more: Any) -> None:
        gpus = {"model": "h100", "memory": "80GB", "per_node": 4}
        cpus = {"cpus": {"count": 64, "arch": arch}} if arch else {}
        spec = {
            "schema": 1,
            "name": "s",
            "scheduler": {"type": "slurm", "reject": ["--ntasks"]},
            "launch": {"with": "srun", "mpi": "pmix"},
            "container": {"runtime": runtime},
            "partitions": {"gpu": {"nodes": 4, "gpus": gpus, **cpus}, "cpu": {"nodes": 4}},
        }
        (self.folder / "site.yaml").write_text(yaml.safe_dump(spec | more))

    def cli(self, **environ: str) -> Cli:
        site = {"HPC_LLM_SITE": str(self.folder / "site.yaml")}
        return Cli(self.folder / "home", {**self._extra, **site, **environ})

    def pull(self, *words: str | Path, **environ: str) -> Done:
        return self.cli(**environ).ask("container", "pull", *(words or (IMAGE,)))

    def calls(self) -> list[list[str]]:
        path = self.tools / "calls.jsonl"
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []

    def left(self) -> set[str]:
        return {path.name for path in self.images.iterdir()}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize(
    ("runtime", "name", "verb", "spelled"),
    [
        ("apptainer", f"{STEM}.sif", "build", IMAGE),
        ("pyxis", f"{STEM}.sqsh", "import", IMAGE.replace("nvcr.io/", "nvcr.io#")),
    ],
)
@pytest.mark.parametrize(
    "image", [IMAGE, IMAGE.removeprefix("docker://"), IMAGE[9:].replace("nvcr.io/", "nvcr.io#")]
)
def test_an_image_becomes_one_file_once(
    runtime: str, name: str, verb: str, spelled: str, image: str, scene: Scene
) -> None:
    scene.site(runtime)
    done = scene.pull(image)
    path = scene.images / name
    line = f"engines: {{tensorrt-llm: {{image: {path}}}}}"
    assert done.code == 0, done.err
    assert done.data == {"path": str(path), "how": "pulled", "site_file": line}
    assert "Fetching image manifest" in done.err
    assert scene.left() == {name}
    [(_, its_verb, *words)] = scene.calls()
    assert (its_verb, words[-1]) == (verb, spelled)
    assert scene.pull(image).data["how"] == "there"
    assert len(scene.calls()) == 1
    assert line in scene.cli()("container", "pull", image).out
    assert yaml.safe_load(line)["engines"]["tensorrt-llm"]["image"] == str(path)


def test_a_jobs_image_is_its_own_or_that_of_the_site(scene: Scene) -> None:
    scene.site(engines={"vllm": {"image": "docker.io#vllm/vllm-openai:v0.24.0"}})
    rows = [{"text": "a"}]
    job = write_job(scene.folder / "a", rows=rows, engine="vllm", model="/none")
    done = scene.pull(job)
    assert done.data["path"] == str(scene.images / "vllm+vllm-openai+v0.24.0.sif")
    assert "{vllm: {image:" in done.data["site_file"]
    own = {"image": "ubuntu:24.04"}
    job = write_job(scene.folder / "b", rows=rows, engine="vllm", model="/none", runtime=own)
    assert scene.pull(job).data["path"] == str(scene.images / "ubuntu+24.04.sif")


def test_a_job_without_any_image_has_none_to_pull(scene: Scene) -> None:
    job = write_job(scene.folder / "a", rows=[{"text": "a"}])
    assert scene.pull(job).codes == ["container.no-image"]
    gone = {"image": "/shared/gone.sif"}
    job = write_job(scene.folder / "b", rows=[{"text": "a"}], runtime=gone)
    assert scene.pull(job).codes == ["container.no-image"]


def test_its_place_is_named_or_that_of_the_sites_images(scene: Scene) -> None:
    out = scene.folder / "mine/x.sif"
    assert scene.pull(IMAGE, "--out", out).data["path"] == str(out)
    done = scene.pull(HPC_LLM_IMAGES="")
    assert (done.code, done.codes) == (4, ["container.no-place"])
    scene.site(engines={"tensorrt-llm": {"image": str(scene.folder / "of/site.sif")}})
    done = scene.pull(HPC_LLM_IMAGES="")
    assert done.data["path"] == str(scene.folder / f"of/{STEM}.sif")


def test_two_pulls_at_once_are_one(scene: Scene) -> None:
    hold = scene.tools / "hold"
    hold.touch()
    words = ("container", "pull", IMAGE, "--output", "json")
    cli = scene.cli()
    with cli.start(*words) as first:
        poll(scene.calls, "the first pull")
        with cli.start(*words) as second:
            assert second.stderr is not None
            waits = rf"process {first.pid} on \S+ is pulling .* waiting"
            assert re.search(waits, second.stderr.readline())
            hold.unlink()
            ends = [json.loads(p.communicate(timeout=60)[0]) for p in (first, second)]
    found = [end["data"]["how"] for end in ends]
    assert found == ["pulled", "there"]
    assert len(scene.calls()) == 1
    assert scene.left() == {f"{STEM}.sif"}


def test_what_a_killed_pull_has_left_is_in_nobodys_way(scene: Scene) -> None:
    hold = scene.tools / "hold"
    hold.touch()
    with scene.cli().start("container", "pull", IMAGE) as first:
        poll((scene.images / f".pulling.{STEM}.sif").exists, "half a file")
        first.kill()
        first.communicate(timeout=60)
    hold.unlink()
    poll(lambda: (scene.images / f".pulling.{STEM}.sif").stat().st_size > 2, "its tool's end")
    assert scene.pull().data["how"] == "pulled"
    assert len(scene.calls()) == 2


def test_who_pulls_on_another_machine_is_named(scene: Scene) -> None:
    scene.images.mkdir()
    ids = {"host": "login2", "boot_id": "b", "pid_namespace": "n", "pid": 7, "start_ticks": 1}
    lock = scene.images / f".{STEM}.sif.pulling.g1"
    lock.write_text(json.dumps(ids))
    done = scene.pull()
    assert (done.code, done.codes) == (4, ["container.busy"])
    assert "process 7 on login2" in done.json["problems"][0]["message"]
    assert str(lock) in done.json["problems"][0]["hint"]


def test_an_interrupted_pull_leaves_nothing(scene: Scene) -> None:
    (scene.tools / "hold").touch()
    with scene.cli().start("container", "pull", IMAGE) as process:
        poll((scene.images / f".pulling.{STEM}.sif").exists, "half a file")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert scene.left() == set()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FATAL:   While performing build: 401 (Unauthorized)", "container.failed"),
        ("write /tmp/build-temp/x: no space left on device", "container.no-space"),
        ("mksquashfs: Disk quota exceeded", "container.no-space"),
    ],
)
@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_a_tool_that_fails_is_quoted_and_leaves_nothing(
    runtime: str, text: str, code: str, scene: Scene
) -> None:
    scene.site(runtime)
    (scene.tools / "fail").write_text(text)
    done = scene.pull()
    assert (done.code, done.codes) == (7, [code])
    assert text in done.json["problems"][0]["message"]
    assert text in done.err
    assert scene.left() == set()


def test_a_missing_tool_is_told(scene: Scene) -> None:
    scene.site(container={"runtime": "apptainer", "command": "singularity"})
    assert scene.pull().code == 0
    assert scene.calls()[0][0] == "singularity"
    scene.site("pyxis")
    done = scene.pull(PATH=scene.slurm.environ["PATH"])
    assert (done.code, done.codes) == (4, ["container.no-tool"])


def test_a_site_without_containers_has_no_file_for_it(scene: Scene) -> None:
    scene.site("none")
    assert scene.pull().codes == ["container.none"]


def test_a_directory_that_cannot_be_written_is_told(scene: Scene) -> None:
    scene.images.write_text("a file")
    assert scene.pull().codes == ["container.unwritable"]


@pytest.mark.parametrize(
    "image", ["docker://me:hunter2@nvcr.io/x:1", "me:hunter2@nvcr.io#x", "$oauthtoken:hunter2@r/x"]
)
def test_a_password_is_neither_taken_nor_printed(image: str, scene: Scene) -> None:
    done = scene.pull(image)
    assert done.codes == ["container.secret"]
    assert "hunter2" not in done.out + done.err
    assert scene.calls() == []


def test_a_digest_is_no_password(scene: Scene) -> None:
    assert scene.pull("ubuntu:24.04@sha256:0123").code == 0


def test_an_image_for_other_cpus_is_refused_before_and_after(scene: Scene) -> None:
    here = os.uname().machine
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[here]
    scene.site(arch=other)
    done = scene.pull()
    assert (done.code, done.codes) == (4, ["plan.image-architecture"])
    assert scene.calls() == []
    scene.site(arch=here)
    (scene.tools / "arch").write_text({"x86_64": "02", "aarch64": "04"}[other])
    done = scene.pull()
    assert (done.code, done.codes) == (4, ["plan.image-architecture"])
    assert scene.left() == set()


class Job:
    """One that was submitted, as Slurm has it: with the text that its script had then."""

    def __init__(self, scene: Scene, number: int) -> None:
        self._scene, self._id = scene, str(1000 + number)
        poll(lambda: self._id in scene.slurm.jobs, "the submission")
        script = Path(scene.slurm.calls("sbatch")[number]["words"][-1])
        self.text, self.log = script.read_text(), script.with_name("log")

    def begin(self) -> None:
        self._scene.slurm.set(**{self._id: "RUNNING"})

    def end(self) -> None:
        words = ("bash", "-c", self.text)
        with self.log.open("r+") as log:  # which has been there since its beginning
            subprocess.run(words, env=self._scene.cli().environ, stdout=log, stderr=log, check=True)
        self._scene.slurm.set(**{self._id: "COMPLETED"})

    @property
    def state(self) -> str:
        return self._scene.slurm.jobs[self._id]


def pulled(process: subprocess.Popen[str]) -> str:
    """What it has printed while it saw to the image."""
    out, err = process.communicate(timeout=60)
    assert json.loads(out)["data"]["how"] == "pulled", err
    return err


class TestInAJob:
    """The script is run as a node would, while the command waits."""

    def start(self, scene: Scene, *words: str) -> AbstractContextManager[subprocess.Popen[str]]:
        ask = ("container", "pull", IMAGE, "--partition", "cpu", *words, "--output", "json")
        return scene.cli().start(*ask)

    def test_a_node_of_the_partition_pulls_it(self, scene: Scene) -> None:
        with self.start(scene, "--account", "us", "--time", "90m") as process:
            job = Job(scene, 0)
            assert "#SBATCH --partition=cpu\n" in job.text
            assert "#SBATCH --account=us\n" in job.text
            assert "#SBATCH --time=0-01:30:00\n" in job.text
            assert "--ntasks" not in job.text  # the site refuses it
            job.begin()
            job.end()
            assert "Fetching image manifest" in pulled(process)
        assert scene.left() == {f"{STEM}.sif"}

    def test_an_option_that_would_end_its_line_is_refused(self, scene: Scene) -> None:
        done = scene.pull(IMAGE, "--partition", "cpu", "--account", "us\ntouch pwned")
        assert (done.code, done.codes) == (4, ["plan.sbatch-value"])
        assert scene.slurm.calls("sbatch") == []

    def test_two_who_ask_do_not_take_each_others_log_away(self, scene: Scene) -> None:
        with self.start(scene) as first:
            of_first = Job(scene, 0)
            with self.start(scene) as second:
                of_second = Job(scene, 1)
                assert of_first.log != of_second.log
                of_first.begin()
                of_second.begin()
                of_first.end()
                pulled(first)
                asked = len(scene.slurm.calls("squeue"))
                poll(lambda: len(scene.slurm.calls("squeue")) > asked, "a look by the second")
                of_second.end()
                assert f"{STEM}.sif (there)" in pulled(second)
        assert scene.left() == {f"{STEM}.sif"}

    def test_a_job_that_waits_when_the_image_is_there_is_withdrawn(self, scene: Scene) -> None:
        with self.start(scene) as process:
            job = Job(scene, 0)
            scene.pull()
            pulled(process)
        assert job.state.startswith("CANCELLED")
        assert scene.left() == {f"{STEM}.sif"}

    def test_a_job_that_ends_without_it_is_quoted(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SlurmScheduler, "poll_s", 0.05)
        for name, value in scene.cli().environ.items():
            monkeypatch.setenv(name, value)
        what = pull.wanted(IMAGE)

        def relay(chunk: bytes) -> None:
            if b"job 1000 on cpu" in chunk:
                Job(scene, 0).log.write_text("DUE TO TIME LIMIT\n")
                scene.slurm.set(j1000="TIMEOUT")

        with pytest.raises(RunError) as err:
            pull.pull_by_job(what, "cpu", time_s=60, account=None, relay=relay)
        [problem] = err.value.problems
        assert problem.code == "container.failed"
        assert problem.message == f"job 1000 has not pulled {IMAGE}: DUE TO TIME LIMIT"

    def test_a_partition_that_is_none_is_told(self, scene: Scene) -> None:
        done = scene.pull(IMAGE, "--partition", "nope")
        assert (done.code, done.codes) == (4, ["container.no-partition"])
        assert "cpu, gpu" in done.json["problems"][0]["hint"]

    def test_an_image_that_is_there_needs_no_job(self, scene: Scene) -> None:
        scene.pull()
        assert scene.pull(IMAGE, "--partition", "cpu").data["how"] == "there"
        assert scene.slurm.calls("sbatch") == []
