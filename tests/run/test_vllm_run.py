"""vLLM jobs as users have them, over the stand-in: submitted, killed, resumed, read."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, poll, session_processes, write_job
from vllm_standin import python_path, write_checkpoint, write_site

ROWS = [{"text": f"row {n}"} for n in range(40)]


@pytest.fixture
def user(tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    site = write_site(tmp_path / "site.yaml")
    return Cli(home, {"PYTHONPATH": python_path(), "HPC_LLM_SITE": str(site)})


def job(user: Cli, rows: list[dict[str, Any]] = ROWS, *, how: Any = None, **changes: Any) -> Path:
    folder = user.home / "work"
    model = write_checkpoint(user.home / "model", **(how or {}))
    return write_job(folder, rows=rows, **({"engine": "vllm", "model": str(model)} | changes))


def problems(run: Path) -> list[tuple[str, str]]:
    """How the newest start ended: the kind of its end and the code of each problem."""
    found = max(run.glob("jobs/*.s0.*"), key=lambda path: path.stat().st_mtime)
    codes = [problem["code"] for problem in json.loads(found.read_bytes())["problems"]]
    return [(found.suffix[1:], code) for code in codes]


def test_a_cut_job_answers_every_row_in_order(user: Cli) -> None:
    done = user.ask("submit", job(user, parallelism={"tp": 2}), "--wait")
    assert (done.code, done.data["rows"]) == (0, {"ok": 40, "error": 0, "open": 0})
    run = user.home / "work/run"
    assert user.texts(run) == [row["text"] for row in ROWS]
    log = next(run.glob("logs/*.s0.log")).read_text()
    assert '"gpus": "0,1"' in log
    assert "engine vllm is ready" in log


def test_rows_bring_token_ids_or_turns_and_bad_ones_are_published_as_errors(user: Cli) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [104, 105]},
        {"messages": [{"role": "user", "content": "x"}]},
        {"prompt": "y" * 100},
        {"prompt": [104, 4096]},
        {"prompt": [104, True]},
        {"prompt": []},
        {"prompt": ["two", "prompts"]},
        {"custom_id": "o", "url": "/v1/completions", "body": {"prompt": [104, 105]}},
    ]
    limits = {"max_bad_fraction": 1.0}
    done = user.ask("submit", job(user, rows, input={"path": "in.jsonl"}, limits=limits), "--wait")
    assert done.data["rows"] == {"ok": 3, "error": 5, "open": 0}
    assert user.texts(user.home / "work/run") == [
        "hi",
        "<user>x<assistant>",
        "prompt_too_long",
        "request_rejected",
        "bad_type",
        "empty_prompt",
        "bad_type",
        "hi",
    ]


def test_a_preview_shows_token_ids(user: Cli) -> None:
    done = user("preview", job(user, [{"prompt": [1, 2]}], input={"path": "in.jsonl"}))
    assert (done.code, "token ids 1 2" in done.out) == (0, True)


def kill_one_of(user: Cli, mark: str) -> tuple[Path, list[str]]:
    """Kill a process of a job that works: its run, and the texts of its rows.

    Its engine answers no more than some of them, so that the job is at work however late it is
    looked at; those that come after it answer all.
    """
    rows = [{"text": f"row {n}"} for n in range(200)]
    how = {"silent_after": 50, "stubborn": True}
    path = job(user, rows, how=how, engine_options={"max_num_seqs": 33}, parallelism={"tp": 2})
    assert user("submit", path).code == 0
    run = user.home / "work/run"
    poll(lambda: [*run.glob("parts/u*"), *run.glob("wal/*.wal")], "something is answered")
    write_checkpoint(user.home / "model", stubborn=True)
    (entry,) = (json.loads(p.read_bytes()) for p in run.glob("jobs/*.submitted"))
    session = entry["process"]["pid"]
    (pid,) = (
        pid
        for pid, words in session_processes(session).items()
        if any(word.endswith(mark) for word in words)
    )
    os.kill(pid, signal.SIGKILL)
    poll(lambda: not session_processes(session), "no process is left")
    return run, [row["text"] for row in rows]


def test_a_runner_that_is_killed_leaves_no_process_and_a_resume_goes_on(user: Cli) -> None:
    run, texts = kill_one_of(user, "launcher.runner")
    assert problems(run) == [("died", "run.died")]
    assert user("resume", run, "--wait").code == 0
    assert user.texts(run) == texts


def test_an_engine_that_is_killed_is_started_again_in_its_job(user: Cli) -> None:
    run, texts = kill_one_of(user, "core.py")
    assert (run / "DONE").exists()
    assert problems(run) == []
    assert user.texts(run) == texts
    (log,) = run.glob("logs/*.s0.log")
    assert log.read_text().count("it is started again") == 1


@pytest.mark.parametrize(
    ("start", "ended", "code"),
    [
        ("in-use", "died", "gpu.in-use"),  # another node may do
        ("weights", "failed", "engine.no-memory"),
        ("mismatch", "failed", "engine.import"),
    ],
)
def test_why_it_did_not_start_is_what_the_run_says(
    user: Cli, start: str, ended: str, code: str
) -> None:
    done = user.ask("submit", job(user, how={"start": start}), "--wait")
    assert done.code == 7
    assert problems(user.home / "work/run") == [(ended, code)]


def test_a_wrong_option_is_found_before_anything_is_submitted(user: Cli) -> None:
    options = {"gpu_memory_utilisation": 0.5, "max_batch_size": 8, "tensor_parallel_size": 2}
    done = user.ask("submit", job(user, engine_options=options))
    assert (done.code, sorted(done.codes)) == (
        4,
        ["engine.options", "engine.options", "plan.engine-option"],
    )
    hints = [problem["hint"] for problem in done.json["problems"]]
    assert "write gpu_memory_utilization" in hints
    assert "set max_num_seqs" in hints
    assert not (user.home / "work/run").exists()


def test_an_option_of_a_later_version_is_a_warning_that_the_job_decides(user: Cli) -> None:
    done = user.ask("plan", job(user, engine_options={"quantum_tunnels": 3}, parallelism={"tp": 2}))
    assert (done.code, done.codes) == (0, ["engine.options"])


@pytest.mark.parametrize(("ep", "code"), [(1, 0), (2, 4), (4, 0)])
def test_experts_are_spread_over_a_whole_tp_group_or_not_at_all(
    user: Cli, tmp_path: Path, ep: int, code: int
) -> None:
    site = write_site(tmp_path / "four.yaml", gpus=4)
    path = job(user, model="mixtral-8x22b", parallelism={"tp": 4, "ep": ep})
    done = user.ask("plan", path, "--site", site)
    assert done.code == code
    assert ("plan.engine-capability" in done.codes) == bool(code)
