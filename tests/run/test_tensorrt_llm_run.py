"""TensorRT-LLM jobs of one rank as users have them, over the stand-in: submitted, read, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, write_job
from trtllm_standin import python_path, write_checkpoint
from vllm_standin import write_site

ROWS = [{"text": f"row {n}"} for n in range(40)]


@pytest.fixture
def user(tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    site = write_site(tmp_path / "site.yaml")
    return Cli(home, {"PYTHONPATH": python_path(mpi=False), "HPC_LLM_SITE": str(site)})


def job(user: Cli, rows: list[dict[str, Any]] = ROWS, *, how: Any = None, **changes: Any) -> Path:
    folder = user.home / "work"
    model = write_checkpoint(user.home / "model", **(how or {}))
    wanted = {"engine": "tensorrt-llm", "model": str(model)} | changes
    return write_job(folder, rows=rows, **wanted)


def problems(run: Path) -> list[tuple[str, str]]:
    """How the newest start ended: the kind of its end and the code of each problem."""
    found = max(run.glob("jobs/*.s0.*"), key=lambda path: path.stat().st_mtime)
    codes = [problem["code"] for problem in json.loads(found.read_bytes())["problems"]]
    return [(found.suffix[1:], code) for code in codes]


def test_a_job_answers_every_row_in_order_with_the_arguments_of_its_file(user: Cli) -> None:
    done = user.ask("submit", job(user, engine_options={"max_batch_size": 8}), "--wait")
    assert (done.code, done.data["rows"]) == (0, {"ok": 40, "error": 0, "open": 0})
    run = user.home / "work/run"
    assert user.texts(run) == [row["text"] for row in ROWS]
    arguments = json.loads((run / "plans/0001.engine.yaml").read_text())
    assert (arguments["max_batch_size"], arguments["tensor_parallel_size"]) == (8, 1)
    log = next(run.glob("logs/*.s0.log")).read_text()
    assert "engine tensorrt-llm is ready" in log
    assert "window 8 (version 1.2.1)" in log
    assert "MpiPoolSession" not in log


def test_rows_bring_token_ids_or_turns_and_bad_ones_are_published_as_errors(user: Cli) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [104, 105]},
        {"messages": [{"role": "user", "content": "x"}]},
        {"prompt": "y" * 100},
        {"prompt": [104, 4096]},
        {"prompt": []},
        {"prompt": list(b"fail")},
    ]
    limits = {"max_bad_fraction": 1.0}
    done = user.ask("submit", job(user, rows, input={"path": "in.jsonl"}, limits=limits), "--wait")
    assert done.data["rows"] == {"ok": 2, "error": 4, "open": 0}
    assert user.texts(user.home / "work/run") == [
        "hi",
        "<user>x<assistant>",
        "prompt_too_long",
        "request_rejected",
        "empty_prompt",
        "request_rejected",
    ]


def test_an_engine_that_dies_ends_the_job_and_a_resume_goes_on(user: Cli) -> None:
    how = {"fault": {"what": "die", "when": 20, "text": "CUDA error: it is gone"}}
    done = user.ask("submit", job(user, how=how, engine_options={"max_batch_size": 4}), "--wait")
    run = user.home / "work/run"
    assert done.code != 0
    assert problems(run) == [("died", "engine.died")]
    write_checkpoint(user.home / "model")
    assert user("resume", run, "--wait").code == 0
    assert user.texts(run) == [row["text"] for row in ROWS]


def test_a_pass_that_fails_ends_the_job_and_leaves_no_row_as_an_error(user: Cli) -> None:
    fault = {"what": "forward", "when": 20, "text": "CUDA error: an illegal memory access"}
    options = {"max_batch_size": 4}
    how = {"latency_s": 0.01, "fault": fault}
    done = user.ask("submit", job(user, how=how, engine_options=options), "--wait")
    run = user.home / "work/run"
    assert done.code == 7
    assert problems(run) == [("died", "engine.died")]
    write_checkpoint(user.home / "model")
    assert user("resume", run, "--wait").code == 0
    assert user.texts(run) == [row["text"] for row in ROWS]


def test_too_little_memory_is_what_the_run_says(user: Cli) -> None:
    how = {"fault": {"what": "oom", "when": "KV cache"}}
    assert user.ask("submit", job(user, how=how), "--wait").code == 7
    assert problems(user.home / "work/run") == [("failed", "engine.no-memory")]


def test_wrong_options_are_found_before_anything_is_submitted(user: Cli) -> None:
    options = {"dtype": "fp8", "kv_cache_dtype": "fp8", "tensor_parallel_size": 2}
    done = user.ask("submit", job(user, engine_options=options))
    assert (done.code, sorted(done.codes)) == (
        4,
        ["engine.options", "engine.options", "plan.engine-option"],
    )
    assert not (user.home / "work/run").exists()


def test_a_dry_run_shows_the_file_of_arguments(user: Cli) -> None:
    done = user("submit", job(user), "--dry-run")
    assert "# plans/0001.engine.yaml\n{" in done.out
    assert '"gpus_per_node": 1' in done.out
