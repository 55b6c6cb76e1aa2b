"""What a user can get wrong: a code, an exit code, a place, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, Done, envelope, write_job
from fake_slurm import FakeSlurm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.cli import main

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"
ROWS = [{"text": "a"}, {"text": "b"}]
Ask = Callable[..., Done]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """A command in this process, on a machine without Slurm, with ``--output json``."""
    home = tmp_path / "home"
    home.mkdir()
    for name in os.environ:
        if name.startswith(("HPC_LLM_", "SLURM_", "XDG_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HPC_LLM_SITE", "local")
    monkeypatch.setenv("PATH", "/nonexistent")

    def run(*words: object) -> Done:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, words), "--output", "json"], prog_name="hpc-llm")
        out, err = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        assert envelope(out)["exit_code"] == code
        return Done(code, out, err)

    return run


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def refused(ask: Ask, folder: Path, *words: object) -> Done:
    """The answer to a command that has to refuse and to write nothing."""
    before = tree(folder)
    done = ask(*words)
    assert tree(folder) == before, "something was written"
    assert done.code != 0
    return done


def job(tmp_path: Path, **changes: Any) -> Path:
    return write_job(tmp_path / "jobs", rows=ROWS, **changes)


COMMANDS = ("plan", "submit", "submit --dry-run")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "spec.unreadable"),
        (b"\xff\xfe", "spec.unreadable"),
        (b"name: [", "spec.yaml"),
        (b"", "spec.yaml"),
        (b"- a\n", "spec.yaml"),
        (b"name: x\nname: y\n", "spec.duplicate-key"),
    ],
)
def test_a_job_file_that_is_none(
    ask: Ask, tmp_path: Path, command: str, content: bytes | None, code: str
) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    done = refused(ask, tmp_path, *command.split(), path)
    assert done.code == 3
    assert code in done.codes
    assert str(path) in json.dumps(done.json["problems"])


def test_a_directory_is_no_job_file(ask: Ask, tmp_path: Path) -> None:
    assert refused(ask, tmp_path, "submit", tmp_path).codes == ["spec.unreadable"]


def test_an_unknown_key_is_placed_and_the_nearest_is_named(ask: Ask, tmp_path: Path) -> None:
    path = job(tmp_path, sampling={"max_token": 5})
    done = refused(ask, tmp_path, "submit", path)
    assert (done.code, done.codes) == (3, ["spec.unknown-key"])
    (problem,) = done.json["problems"]
    line = path.read_text().splitlines().index("  max_token: 5") + 1
    assert problem["where"].startswith(f"{path}:{line}:")
    assert "max_tokens" in problem["hint"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"parallelism": {"tp": 7}}, "plan.tp-kv-heads"),
        ({"parallelism": {"tp": 16}, "model": "llama-3.1-405b"}, "plan.tp-over-fabric"),
        ({"resources": {"partition": "batch", "time": "2d"}}, "plan.time-over-limit"),
        ({"resources": {"partition": "gpu", "time": "1h"}}, "plan.partition-unknown"),
    ],
)
def test_a_plan_that_cannot_run_there(
    ask: Ask, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    model = tmp_path / "jobs" / "model"
    model.mkdir(parents=True)
    shutil.copy(CONFIGS / "qwen2.5-7b.json", model / "config.json")
    spec = {"engine": "tensorrt-llm", "model": "model", "runtime": {"image": "i.sqsh"}}
    resources = {"resources": {"partition": "batch", "time": "1h"}}
    chat = {"input": {"path": "in.jsonl", "prompt": "{{ text }}", "chat": False}}
    path = job(tmp_path, **(spec | resources | chat | changes))
    for command in ("plan", "submit"):
        done = refused(ask, tmp_path, command, path, "--site", "dgx-h100")
        assert done.code == 4
        assert code in done.codes
        assert any(p["where"] and str(path) in p["where"] for p in done.json["problems"])


def test_more_nodes_than_there_are(ask: Ask, tmp_path: Path) -> None:
    site = tmp_path / "small.yaml"
    text = (Path(__file__).parents[2] / "site_configs" / "dgx-h100.yaml").read_text()
    site.write_text(text.replace("  batch:", "  batch:\n    nodes: 2", 1))
    spec = {"engine": "tensorrt-llm", "model": "llama-3.1-405b", "replicas": 2}
    cut = {"parallelism": {"tp": 8, "pp": 2}, "resources": {"time": "1h"}}
    path = job(tmp_path, **spec, **cut, runtime={"image": "i.sqsh"})
    done = refused(ask, tmp_path, "submit", path, "--site", site)
    assert (done.code, done.codes) == (4, ["plan.too-few-nodes"])


@pytest.mark.parametrize(("content", "code"), [(b"", "input.empty"), (b"\n \n\r\n", "input.empty")])
def test_an_input_without_rows(ask: Ask, tmp_path: Path, content: bytes, code: str) -> None:
    path = job(tmp_path)
    (path.parent / "in.jsonl").write_bytes(content)
    done = refused(ask, tmp_path, "submit", path)
    assert (done.code, done.codes) == (3, [code])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("nosuch.jsonl", "input.missing"),
        ("*.nosuch", "input.missing"),
        ("x" * 5000, "input.unreadable"),
        ("job.yaml", "input.format"),
        ("/dev/null", "input.unreadable"),
        ("job.yaml/x.jsonl", "input.unreadable"),
    ],
)
def test_an_input_that_is_not_there(ask: Ask, tmp_path: Path, given: str, code: str) -> None:
    path = job(tmp_path, input={"path": given, "prompt": "{{ text }}", "chat": False})
    done = refused(ask, tmp_path, "submit", path)
    assert (done.code, done.codes) == (3, [code])


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("{{ txt }}", "input.missing-field"),
        ("{{ text", "spec.template"),
        ("{% for x in text %}", "spec.template"),
        ("{{ text.__class__.__mro__ }}", "input.unsafe-template"),
        ("{{ ''.__class__ }}", "input.unsafe-template"),
        ("{{ 1 / 0 }}", "input.template"),
    ],
)
def test_a_template_that_no_row_can_pass(ask: Ask, tmp_path: Path, prompt: str, code: str) -> None:
    path = job(tmp_path, input={"path": "in.jsonl", "prompt": prompt, "chat": False})
    done = refused(ask, tmp_path, "submit", path)
    assert (done.code, done.codes) == (3, [code])


def test_a_directory_with_something_else_in_it(ask: Ask, tmp_path: Path) -> None:
    path = job(tmp_path, output={"path": "."})
    for command in ("submit", "submit --dry-run"):
        done = refused(ask, tmp_path, *command.split(), path)
        assert (done.code, done.codes) == (4, ["rundir.not-empty"])
    done = refused(ask, tmp_path, "render", path, "--out", tmp_path)
    assert (done.code, done.codes) == (4, ["rundir.not-empty"])


@pytest.mark.parametrize("where", ["job.yaml", "job.yaml/run", "/proc/run", "x" * 300, "x" * 5000])
def test_a_run_directory_that_cannot_be_made(ask: Ask, tmp_path: Path, where: str) -> None:
    path = job(tmp_path, output={"path": where})
    done = refused(ask, tmp_path, "submit", path)
    assert done.code == 4
    assert done.codes in (["rundir.unwritable"], ["rundir.not-empty"])


@pytest.mark.parametrize("out", ["a:b", "a,b"])
def test_a_rendered_directory_has_to_be_one_that_scripts_can_name(
    ask: Ask, tmp_path: Path, out: str
) -> None:
    done = refused(ask, tmp_path, "render", job(tmp_path), "--out", tmp_path / out)
    assert (done.code, done.codes) == (4, ["plan.run-directory"])


def test_a_directory_of_another_run(ask: Ask, tmp_path: Path) -> None:
    path = job(tmp_path)
    assert ask("render", path, "--out", path.parent / "run").code == 0
    for command in ("submit", "submit --dry-run"):
        done = refused(ask, tmp_path, *command.split(), path, "--set", "sampling.seed=9")
        assert (done.code, done.codes) == (4, ["rundir.other-run"])
        assert "sampling.seed: 0 -> 9" in done.json["problems"][0]["message"]


def test_a_shape_is_no_checkpoint(ask: Ask, tmp_path: Path) -> None:
    spec = {"engine": "tensorrt-llm", "model": "llama-3.1-405b", "parallelism": {"tp": 8, "pp": 2}}
    path = job(tmp_path, **spec, runtime={"image": "i.sqsh"}, resources={"time": "1h"})
    done = refused(ask, tmp_path, "submit", path, "--site", "dgx-h100")
    assert (done.code, done.codes) == (4, ["model.not-cached"])


def test_a_model_that_is_not_there(ask: Ask, tmp_path: Path) -> None:
    path = job(tmp_path, engine="transformers", model="nosuch-7b")
    assert refused(ask, tmp_path, "submit", path).codes == ["model.missing"]
    path = job(tmp_path, engine="transformers", model="smollm2-135m")
    done = refused(ask, tmp_path, "submit", path)
    assert (done.code, done.codes) == (4, ["model.not-cached"])


SLURM_JOB = {"resources": {"partition": "batch", "time": "1h"}, "runtime": {"venv": "/opt/v"}}


def test_without_sbatch_the_run_is_kept_and_a_later_submit_works(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job(tmp_path, **SLURM_JOB)
    done = ask("submit", path, "--site", "dgx-h100")
    assert (done.code, done.codes) == (6, ["slurm.absent", "rundir.kept"])
    slurm = FakeSlurm(tmp_path / "slurm")
    slurm.home.mkdir()
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{slurm.environ['PATH']}:/usr/bin:/bin")
    done = ask("submit", path, "--site", "dgx-h100")
    assert (done.code, done.data["job"]) == (0, "1000")
    assert slurm.jobs == {"1000": "PENDING"}
    again = ask("submit", path, "--site", "dgx-h100")
    assert (again.data["how"], again.data["job"]) == ("attached", "1000")
    assert len(slurm.calls("sbatch")) == 1


def on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "slurm")
    slurm.home.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(slurm.home))
    monkeypatch.setenv("PATH", f"{Path(slurm.environ['PATH'].split(':')[0])}:/usr/bin:/bin")
    return slurm


def test_a_submission_that_slurm_refuses_can_be_repeated(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = on_slurm(tmp_path, monkeypatch)
    slurm.fail("sbatch", code=1, stderr="sbatch: error: Invalid account \x1b[31m\n")
    path = job(tmp_path, **SLURM_JOB)
    done = ask("submit", path, "--site", "dgx-h100")
    assert (done.code, done.codes) == (6, ["slurm.refused", "rundir.kept"])
    slurm.mend("sbatch")
    assert ask("submit", path, "--site", "dgx-h100").data["how"] == "submitted"


def test_the_status_of_a_slurm_run_follows_its_jobs(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = on_slurm(tmp_path, monkeypatch)
    path = job(tmp_path, **SLURM_JOB)
    ask("submit", path, "--site", "dgx-h100")
    run = path.parent / "run"
    seen = []
    for word in ("PENDING", "RUNNING", "SOMETHING_NEW", "NODE_FAIL"):
        slurm.set(j1000=word)
        seen.append(ask("status", run).data["state"])
    assert seen == ["queued", "running", "running", "failed"]
    slurm.set(j1000="RUNNING")
    assert ask("cancel", run).data["jobs"] == ["1000"]
    assert ask("status", run).data["state"] == "cancelled"
    assert ask("resume", run).data["job"] == "1001"


HOSTILE = st.text(
    alphabet=st.sampled_from(
        list("a/ .~*?[]{}%$`'\"\\;&|<>#!\n\t\r\x1b\x9b\u2028é日\U0001f600-=:,")
    ),
    max_size=12,
)
FIELDS = (
    "name",
    "model",
    "input.path",
    "input.prompt",
    "output.path",
    "runtime.venv",
    "runtime.python",
    "resources.account",
    "resources.qos",
    "resources.reservation",
    "resources.partition",
    "resources.time",
    "sampling.stop",
    "engine",
    "env.X",
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(field=st.sampled_from(FIELDS), text=HOSTILE, site=st.sampled_from(["local", "dgx-h100"]))
def test_no_text_in_any_field_is_a_bug_or_writes_anything(
    ask: Ask, tmp_path: Path, field: str, text: str, site: str
) -> None:
    path = job(tmp_path, **SLURM_JOB)
    before = tree(tmp_path)
    value = json.dumps([text] if field == "sampling.stop" else text)
    for command in (["plan"], ["submit", "--dry-run"]):
        done = ask(*command, path, "--site", site, "--set", f"{field}={value}")
        assert done.code in (0, 3, 4)
        assert (done.code == 0) == (
            not any(p["severity"] == "error" for p in done.json["problems"])
        )
    assert tree(tmp_path) == before


ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b2J"


def raw(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c != "\n"]


def test_no_escape_from_a_file_reaches_the_terminal(cli: Cli) -> None:
    folder = cli.home / f"jobs{ESCAPE}".replace("/", "")
    dies = {"engine_options": {"die_after": 0}, "limits": {"engine_restarts": 0}}
    path = write_job(folder, rows=[{"text": ESCAPE}], **dies)
    failed = cli("submit", path, "--wait")
    assert failed.code == 7
    run = folder / "run"
    with next((run / "logs").glob("*.log")).open("a") as log:
        log.write(f"engine says {ESCAPE}\n")
    shown = [
        failed,
        cli("plan", path),
        cli("plan", path, "--explain"),
        cli("plan", path, "--check-input"),
        cli("submit", path, "--dry-run"),
        cli("render", path, "--out", folder / "out"),
        cli("status", run),
        cli("logs", run),
        cli("peek", run),
        cli("list"),
        cli("resume", run, "--wait"),
        cli("cancel", run),
        cli("results", run, "--partial", "--merge", folder / "merged"),
        cli("status", folder / "nosuch"),
        cli("plan", folder / "nosuch"),
        cli("plan", path, "--set", f"input.prompt={json.dumps('{{ ' + ESCAPE)}"),
        cli("plan", path, "--set", f"no{ESCAPE}=1"),
        cli("plan", path, "--site", f"no{ESCAPE}"),
        cli("explain", f"no{ESCAPE}"),
        cli("models", "show", f"no{ESCAPE}"),
        cli("site", "show", f"no{ESCAPE}"),
    ]
    for done in shown:
        assert raw(done.out) == [], done.out
        assert raw(done.err) == [], done.err
