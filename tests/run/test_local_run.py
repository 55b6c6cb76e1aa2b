"""Whole runs on this machine: real processes, and what happens when they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_driving import LIMIT_S, Cli, poll, session_processes, write_job

ROWS = [{"text": f"row {n} of many"} for n in range(60)]
TEXTS = [row["text"] for row in ROWS]
# 60 rows, two at a time, 60 ms each: close to two seconds.
SLOW = {"latency_ms": 60, "max_in_flight": 2}


NO_RESTARTS = {"engine_restarts": 0}
# A second more than a replica keeps for closing its engine.
SHORT_WARNING = {"warn_before": "31s"}


def job(cli: Cli, **changes: Any) -> Path:
    return write_job(cli.home / "work", rows=ROWS, **changes)


def run_of(job_file: Path) -> Path:
    return job_file.parent / "run"


def session(run: Path) -> int:
    """The process id of the newest job's script, which leads its session."""
    entries = [json.loads(p.read_bytes()) for p in (run / "jobs").glob("*.submitted")]
    pid: int = max(entries, key=lambda entry: entry["submitted"])["process"]["pid"]
    return pid


def parts(run: Path) -> list[Path]:
    return list((run / "parts").glob("u*.jsonl"))


def started(cli: Cli, job_file: Path) -> Path:
    """A run that has published something and is not done."""
    done = cli("submit", job_file)
    assert done.code == 0, done.err
    run = run_of(job_file)
    poll(lambda: parts(run), "a part is published")
    assert not (run / "DONE").exists()
    return run


def finish(cli: Cli, run: Path) -> None:
    """Resume until it is done, as a user would; more than once where something still lives."""
    poll(lambda: cli("resume", run, "--wait").code == 0, "the run is done")


def ended(cli: Cli, run: Path) -> str:
    poll(lambda: not session_processes(session(run)), "the job's processes are gone")
    return cli.state(run)


def test_two_replicas_share_the_work_and_keep_the_order(cli: Cli) -> None:
    job_file = job(cli, replicas=2, engine_options={"latency_ms": 30, "max_in_flight": 2})
    done = cli.ask("submit", job_file, "--wait")
    assert done.code == 0, done.err
    assert done.data["rows"] == {"ok": 60, "error": 0, "open": 0}
    run = run_of(job_file)
    assert cli.texts(run) == TEXTS
    assert len({path.read_text() for path in (run / "leases").iterdir()}) == 2


@pytest.mark.parametrize("again", ["submit", "resume"])
@pytest.mark.parametrize("victim", ["runner", "wrapper", "script", "session"])
def test_after_a_kill_every_row_is_there_once(cli: Cli, victim: str, again: str) -> None:
    job_file = job(cli, engine_options=SLOW)
    run = started(cli, job_file)
    processes = session_processes(session(run))
    marks = {"runner": "launcher.runner", "wrapper": "launcher.runner.rank"}
    if victim == "session":
        os.killpg(session(run), signal.SIGKILL)
    elif victim == "script":
        os.kill(session(run), signal.SIGKILL)
    else:
        (pid,) = [pid for pid, words in processes.items() if marks[victim] in words]
        os.kill(pid, signal.SIGKILL)
    poll(lambda: cli.state(run) != "running", "the death is seen")
    before = {part.name: part.stat().st_mtime_ns for part in parts(run)}
    target = job_file if again == "submit" else run
    poll(lambda: cli(again, target, "--wait").code == 0, "the run is done")
    assert cli.texts(run) == TEXTS
    after = {part.name: part.stat().st_mtime_ns for part in parts(run)}
    assert before.items() <= after.items(), "a published part was written again"


def test_a_killed_runner_is_a_failure_with_its_reason(cli: Cli) -> None:
    run = started(cli, job(cli, engine_options=SLOW))
    (pid,) = [p for p, w in session_processes(session(run)).items() if "launcher.runner" in w]
    os.kill(pid, signal.SIGKILL)
    assert ended(cli, run) == "failed"
    status = cli.ask("status", run)
    assert (status.code, status.codes) == (0, ["run.died"])
    assert "SIGKILL" in status.json["problems"][0]["message"]


def test_the_status_of_a_running_job_is_seen_by_any_process(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW)
    run = started(cli, job_file)
    status = cli.ask("status", run)
    assert status.data["state"] == "running"
    assert 0 < status.data["units"]["done"] < status.data["units"]["total"]
    assert 0 < status.data["bytes"]["done"] < status.data["bytes"]["total"]
    assert cli.ask("status", "run").data["path"] == str(run)  # by name, too
    assert [entry["path"] for entry in cli.ask("list").data["runs"]] == [str(run)]


def test_a_cancelled_run_stops_and_goes_on_when_resumed(cli: Cli) -> None:
    run = started(cli, job(cli, engine_options=SLOW))
    pid = session(run)
    cancelled = cli.ask("cancel", run)
    assert cancelled.code == 0
    assert len(cancelled.data["jobs"]) == 1
    assert not session_processes(pid)
    assert cli.state(run) == "cancelled"
    assert len(parts(run)) < 60
    finish(cli, run)
    assert cli.texts(run) == TEXTS


def test_what_a_killed_script_leaves_behind_still_counts_and_can_be_cancelled(cli: Cli) -> None:
    run = started(cli, job(cli, engine_options=SLOW))
    pid = session(run)
    os.kill(pid, signal.SIGKILL)
    assert cli.state(run) == "running"
    assert len(cli.ask("cancel", run).data["jobs"]) == 1
    assert not session_processes(pid)
    assert cli.state(run) == "cancelled"


def test_a_rendered_run_is_ready_until_it_is_submitted(cli: Cli) -> None:
    job_file = job(cli)
    assert cli.ask("render", job_file, "--out", run_of(job_file)).code == 0
    assert cli.state(run_of(job_file)) == "ready"
    assert cli.ask("submit", job_file, "--wait").data["state"] == "done"


def test_cancelling_what_is_over_says_so_and_harms_nothing(cli: Cli) -> None:
    job_file = job(cli)
    assert cli("submit", job_file, "--wait").code == 0
    run = run_of(job_file)
    assert cli.ask("cancel", run).data["jobs"] == []
    assert cli.state(run) == "done"
    assert cli.texts(run) == TEXTS


def test_a_second_submit_attaches_to_the_first(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW)
    run = started(cli, job_file)
    first = cli.ask("submit", job_file)
    assert first.data["how"] == "attached"
    waited = cli.ask("submit", job_file, "--wait")
    assert (waited.code, waited.data["state"]) == (0, "done")
    assert cli.ask("submit", job_file).data == {"run": str(run), "how": "done", "job": None}
    assert cli.ask("resume", run).data["how"] == "done"
    assert len(list((run / "jobs").glob("*.submitted"))) == 1
    assert cli.texts(run) == TEXTS


def test_two_submissions_at_once_answer_every_row_once(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW)
    words = ("submit", job_file, "--wait")
    with cli.start(*words) as first, cli.start(*words) as second:
        for racer in (first, second):
            racer.communicate(timeout=LIMIT_S)
    run = run_of(job_file)
    finish(cli, run)
    assert cli.texts(run) == TEXTS


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("sampling.max_tokens=7", "sampling.max_tokens"),
        ('input.prompt="{{ text }}!"', "prompt.prompt"),
        ("output.keep=all", "keep"),
        ("name=other", "name"),
    ],
)
def test_another_job_in_the_same_directory_is_refused(cli: Cli, setting: str, field: str) -> None:
    job_file = job(cli)
    assert cli("submit", job_file, "--wait").code == 0
    before = sorted(run_of(job_file).rglob("*"))
    refused = cli.ask("submit", job_file, "--set", setting)
    assert (refused.code, refused.codes) == (4, ["rundir.other-run"])
    assert field in refused.json["problems"][0]["message"]
    assert sorted(run_of(job_file).rglob("*")) == before


def test_changed_input_is_refused_by_name(cli: Cli) -> None:
    job_file = job(cli)
    assert cli("submit", job_file, "--wait").code == 0
    with (job_file.parent / "in.jsonl").open("a") as file:
        file.write('{"text": "late"}\n')
    refused = cli.ask("submit", job_file)
    assert (refused.code, refused.codes) == (4, ["rundir.other-run"])
    assert "in.jsonl" in refused.json["problems"][0]["message"]


def test_input_that_changes_before_a_resume_stops_the_job(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW)
    run = started(cli, job_file)
    cli("cancel", run)
    with (job_file.parent / "in.jsonl").open("a") as file:
        file.write('{"text": "late"}\n')
    resumed = cli.ask("resume", run, "--wait")
    assert (resumed.code, resumed.codes) == (7, ["input.changed"])


def test_what_does_not_change_the_answers_may_change(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW)
    run = started(cli, job_file)
    cli("cancel", run)
    settings = ("--set", "replicas=2", "--set", "engine_options.latency_ms=0")
    assert cli("submit", job_file, "--wait", *settings).code == 0
    assert cli.texts(run) == TEXTS
    assert sorted(p.name for p in (run / "plans").iterdir()) == ["0001.json", "0002.json"]


def test_a_limit_makes_a_run_of_its_own(cli: Cli) -> None:
    job_file = job(cli)
    done = cli.ask("submit", job_file, "--limit", "5", "--wait")
    assert done.code == 0
    assert not run_of(job_file).exists()
    assert cli.texts(job_file.parent / "run.first-5") == TEXTS[:5]
    assert cli("submit", job_file, "--wait").code == 0
    assert cli.texts(run_of(job_file)) == TEXTS


def test_ctrl_c_leaves_the_run_going_and_says_how_to_come_back(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW, limits=SHORT_WARNING)
    run = run_of(job_file)
    with cli.start("submit", job_file, "--wait") as waiting:
        poll(lambda: run.exists() and parts(run), "a part is published")
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=LIMIT_S)
    assert waiting.returncode == 130
    assert f"hpc-llm status {run}" in err
    assert cli.state(run) == "running"
    poll(lambda: cli.state(run) == "done", "the run is done")
    assert cli.texts(run) == TEXTS


def test_a_dead_engine_is_a_failed_run_with_its_reason(cli: Cli) -> None:
    job_file = job(cli, engine_options={"die_after": 20}, limits=NO_RESTARTS)
    done = cli.ask("submit", job_file, "--wait")
    assert done.code == 7
    assert "engine.died" in done.codes
    again = cli.ask("submit", job_file, "--wait", "--set", "engine_options={}")
    assert (again.code, again.codes) == (0, [])
    assert cli.texts(run_of(job_file)) == TEXTS


def test_an_engine_that_dies_at_the_last_row_is_no_early_leave(cli: Cli) -> None:
    job_file = job(cli, engine_options={"die_after": len(ROWS) - 1}, limits=NO_RESTARTS)
    done = cli.ask("submit", job_file, "--wait")
    assert (done.code, done.codes) == (7, ["engine.died"])


def test_the_reason_of_an_older_job_is_not_given_for_a_newer_one(cli: Cli) -> None:
    job_file = job(cli, engine_options={"die_after": 20}, limits=NO_RESTARTS)
    assert cli("submit", job_file, "--wait").code == 7
    options = ("--set", 'engine_options={"max_in_flight": 0}')
    newer = cli.ask("submit", job_file, "--wait", *options)
    assert (newer.code, newer.codes) == (7, ["engine.options"])


@pytest.mark.parametrize(("allowed", "code"), [(0.2, 8), (0.9, 0), (1.0, 0)])
def test_error_rows_count_against_the_limit_of_the_job(cli: Cli, allowed: float, code: int) -> None:
    job_file = job(cli, engine_options={"fail_rate": 0.5}, limits={"max_bad_fraction": allowed})
    done = cli.ask("submit", job_file, "--wait")
    assert done.code == code, done.err
    assert done.codes == (["output.too-many-errors"] if code else [])
    texts = cli.texts(run_of(job_file))
    assert len(texts) == 60
    assert texts.count("engine_error") == done.data["rows"]["error"] > 12
    assert cli("status", run_of(job_file)).code == 0


def test_no_error_at_all_may_be_demanded(cli: Cli) -> None:
    job_file = job(cli, limits={"max_bad_fraction": 0.0})
    assert cli("submit", job_file, "--wait").code == 0


def test_a_warning_signal_drains_and_a_resume_goes_on(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW, limits=SHORT_WARNING)
    run = started(cli, job_file)
    os.kill(session(run), signal.SIGUSR1)
    assert ended(cli, run) == "stopped"
    assert list((run / "jobs").glob("*.resumable"))
    assert len(parts(run)) < 60
    finish(cli, run)
    assert cli.texts(run) == TEXTS


def test_a_warning_that_comes_again_and_again_kills_nobody(cli: Cli) -> None:
    """Slurm tells every process of a step, and wrappers hand it on when they get to it."""
    run = started(cli, job(cli, engine_options=SLOW, limits=SHORT_WARNING))
    found = session_processes(session(run))
    [runner] = (pid for pid, words in found.items() if "launcher.runner" in words)

    def over() -> bool:
        try:
            os.kill(runner, signal.SIGUSR1)
        except ProcessLookupError:
            return True
        return False

    poll(over, "the end of the runner")
    assert ended(cli, run) == "stopped"
    assert [path.suffix for path in (run / "jobs").glob("*.s0.*")] == [".resumable"]


def test_a_warning_makes_the_waiting_command_exit_with_75(cli: Cli) -> None:
    job_file = job(cli, engine_options=SLOW, limits=SHORT_WARNING)
    run = run_of(job_file)
    with cli.start("submit", job_file, "--wait", "--output", "json") as waiting:
        poll(lambda: run.exists() and parts(run), "a part is published")
        os.kill(session(run), signal.SIGUSR1)
        out, _ = waiting.communicate(timeout=LIMIT_S)
    assert waiting.returncode == json.loads(out)["exit_code"] == 75
    assert [p["code"] for p in json.loads(out)["problems"]] == ["run.stopped"]


def test_a_warning_before_the_interpreter_is_up_kills_nothing(cli: Cli) -> None:
    """A container or a busy file system can take minutes to start Python."""
    ready, go = cli.home / "ready", cli.home / "go"
    slow = cli.home / "python"
    slow.write_text(
        f'#!/bin/bash\n: >{ready}\nuntil [ -e {go} ]; do sleep 0.05; done\nexec python3 "$@"\n'
    )
    slow.chmod(0o755)
    job_file = job(cli, runtime={"python": str(slow)})
    assert cli("submit", job_file).code == 0
    run = run_of(job_file)
    poll(ready.exists, "the step is on its way")
    os.kill(session(run), signal.SIGUSR1)
    go.touch()
    assert ended(cli, run) in ("done", "stopped")


def test_a_termination_signal_stops_the_run_resumably(cli: Cli) -> None:
    run = started(cli, job(cli, engine_options=SLOW))
    os.kill(session(run), signal.SIGTERM)
    assert ended(cli, run) == "stopped"
    finish(cli, run)
    assert cli.texts(run) == TEXTS


def bash(cli: Cli, run: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", run / "script.sh"],
        env=cli.environ | environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd="/",
        check=False,
    )


def test_a_rendered_script_run_by_hand_does_the_job(cli: Cli) -> None:
    job_file = job(cli, replicas=2)
    run = cli.home / "by hand"
    assert cli.ask("render", job_file, "--out", run).code == 0
    done = bash(cli, run)
    assert (done.returncode, done.stderr) == (0, "")
    assert cli.texts(run) == TEXTS
    status = cli.ask("status", run)
    assert status.data["state"] == "done"
    assert len(status.data["jobs"]) == 1
    assert bash(cli, run).returncode == 0  # nothing is left to do


def test_a_status_that_follows_stays_until_the_end(cli: Cli) -> None:
    run = started(cli, job(cli, engine_options={"latency_ms": 150, "max_in_flight": 2}))
    (now,) = poll(lambda: live(cli, run), "a beat says that it answers")
    assert (now["queued"], now["engine_restarts"], now["kv_cache_usage"]) == (0, 0, None)
    assert now["host"]
    done = cli.ask("status", run, "--follow")
    assert (done.code, done.data["state"], done.data["rows"]["ok"]) == (0, "done", 60)
    assert "of the input" in done.err
    assert done.data["rows_left"] == 0


def live(cli: Cli, run: Path) -> list[dict[str, Any]]:
    workers = cli.ask("status", run).data["workers"]
    return [worker for worker in workers if worker["phase"] == "running"]


def test_a_script_says_by_its_exit_code_how_it_went(cli: Cli) -> None:
    run = cli.home / "run"
    job_file = job(cli, engine_options={"die_after": 3}, limits=NO_RESTARTS)
    assert cli("render", job_file, "--out", run).code == 0
    assert bash(cli, run).returncode == 7
    (run / "control" / "STOP").touch()
    assert bash(cli, run).returncode == 0


def test_a_script_run_inside_a_job_takes_that_jobs_name(cli: Cli) -> None:
    run = cli.home / "run"
    assert cli("render", job(cli), "--out", run).code == 0
    environ = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "3", "SLURM_NTASKS": "9"}
    assert bash(cli, run, **environ).returncode == 0
    assert [job["id"] for job in cli.ask("status", run).data["jobs"]] == ["42"]


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'q"uote', "ünï-日本", "$HOME `id` $(id)", "-x", "a*b?[c]", "%j", "~"]
)
def test_a_run_directory_may_be_called_anything(cli: Cli, name: str) -> None:
    job_file = write_job(cli.home / name, rows=ROWS[:3], output={"path": f"run {name}"})
    done = cli.ask("submit", job_file, "--wait")
    assert (done.code, done.codes) == (0, []), done.err
    assert cli.texts(job_file.parent / f"run {name}") == TEXTS[:3]


def test_nothing_of_a_surrounding_job_gets_into_a_local_run(cli: Cli) -> None:
    inside = {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "8",
        "SLURM_JOB_ID": "99",
        "SLURM_ARRAY_JOB_ID": "98",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_RESTART_COUNT": "2",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "8",
        "PMI_RANK": "3",
        "HPC_LLM_LOCAL_JOB": "stale",
    }
    job_file = job(cli, replicas=2)
    done = Cli(cli.home, inside).ask("submit", job_file, "--wait")
    assert (done.code, done.codes) == (0, []), done.err
    assert cli.texts(run_of(job_file)) == TEXTS
    assert done.data["jobs"][0]["id"].startswith("local-")


def test_what_a_killed_submission_leaves_is_in_nobodys_way(cli: Cli) -> None:
    job_file = job(cli)
    run = run_of(job_file)
    assert cli("render", job_file, "--out", run).code == 0
    (run / "run.json").unlink()  # it comes last
    (run / ".run.json.0123.tmp").touch()
    done = cli.ask("submit", job_file, "--wait")
    assert (done.code, done.codes) == (0, [])
    assert cli.texts(run) == TEXTS


def test_a_run_whose_directory_was_moved_away_is_no_longer_listed(cli: Cli) -> None:
    job_file = job(cli)
    assert cli("submit", job_file, "--wait").code == 0
    run_of(job_file).rename(cli.home / "moved")
    assert cli.ask("list").data["runs"] == []
    assert cli.ask("status", "run").codes == ["rundir.missing"]
    assert cli.texts(cli.home / "moved") == TEXTS


def test_a_bad_row_is_published_and_the_run_goes_on(cli: Cli) -> None:
    job_file = job(cli, limits={"max_bad_fraction": 0.5})
    lines = [b'{"text": "a"}', b"{not json", b"[1]", b'{"text": "\xff"}', b'{"text": "b"}']
    (job_file.parent / "in.jsonl").write_bytes(b"\n".join(lines))
    done = cli.ask("submit", job_file, "--wait", "--set", "limits.max_bad_fraction=1")
    assert done.code == 0
    expected = ["a", "invalid_json", "not_an_object", "invalid_json", "b"]
    assert cli.texts(run_of(job_file)) == expected
