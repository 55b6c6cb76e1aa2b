"""What a job will take, as plan and submit say it: where figures are from, what is not known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from fake_slurm import FakeSlurm
from run_making import json_lines, make_run

from launcher.cli import main
from launcher.cli.outlook import outlook_line, outlook_rows
from launcher.outlook import Forecast, expected_start, forecast
from launcher.plan import grid
from launcher.prepare import Prepared, prepare
from launcher.rundir import RunDir
from launcher.runs import remember
from launcher.telemetry.metrics import Beat, WorkerLog

SITE = """
name: mine
scheduler: {type: slurm, restart: %s}
launch: {with: srun, mpi: pmix}
partitions:
  gpu:
    nodes: 8
    time_limit: 1d
    cpus: {count: 64}
    gpus: {model: h100, memory: 80GB, per_node: 4, link: nvlink4, topology: all-to-all,
           request: "--gres=gpu:{n}"}
    fabric: {type: infiniband, rate: 400, nics: 4}
"""
JOB: Mapping[str, Any] = {
    "name": "summaries",
    "engine": "vllm",
    "model": "llama-3.1-8b",
    "input": {"path": "rows.jsonl", "prompt": "{{ text }}", "chat": False},
    "sampling": {"max_tokens": 400},
    "parallelism": {"tp": 1},
    "replicas": 4,
    "resources": {"time": "2h"},
    "runtime": {"venv": "/opt/vllm"},
    "output": {"path": "out"},
}
ROWS = 3000
CONTEXT = "max_position_embeddings"
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def slurm(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    found = FakeSlurm(own_home / "slurm")
    found.home.mkdir()
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mine.yaml").write_text(SITE % "requeue")
    (tmp_path / "rows.jsonl").write_bytes(json_lines([{"text": "word " * 80}] * ROWS))
    return found


def prepared(folder: Path, **changes: Any) -> Prepared:
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, **changes}))
    return prepare(folder / "job.yaml", site=str(folder / "mine.yaml"))


def told(job: Prepared) -> Forecast:
    return forecast(job)


def codes(found: Forecast) -> list[str]:
    return [problem.code for problem in found.warnings]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replicas": 30},
        {"sampling": {"max_tokens": 30_000}},
        {"model": "llama-3.1-70b", "parallelism": {"tp": 2, "pp": 2}, "replicas": 1},
        {"model": "deepseek-v3", "parallelism": {"tp": 4, "pp": 4}, "replicas": 1},
        {"model": "gemma-3-27b", "engine": "tensorrt-llm"},
    ],
    ids=str,
)
@pytest.mark.parametrize("ports", ["nics: 4", "nics: null"])
def test_a_cut_is_as_fast_in_the_outlook_as_among_the_candidates(
    tmp_path: Path, changes: dict[str, Any], ports: str
) -> None:
    (tmp_path / "mine.yaml").write_text((SITE % "requeue").replace("nics: 4", ports))
    job = prepared(tmp_path, **changes)
    search, speed = job.resolution.search, told(job).speed
    assert search is not None
    assert search.chosen is not None
    assert search.chosen.cost is not None
    assert speed is not None
    assert speed.tokens_s.likely == pytest.approx(search.chosen.cost.tokens_s, rel=0.02)


@pytest.mark.parametrize("context", [1, 100, 2048])
def test_rows_are_no_longer_than_the_model_takes(tmp_path: Path, context: int) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_1B | {CONTEXT: context}))
    job = prepared(tmp_path, model="model", sampling={"max_tokens": 32_000})
    found, search = told(job), job.resolution.search
    assert found.work is not None
    assert found.work.prompt_tokens.most <= context
    assert found.work.new_tokens.most <= context
    assert "half of what the model takes beside a prompt" in found.answers
    assert search is not None
    assert search.chosen is not None
    assert search.chosen.cost is not None
    assert found.speed is not None
    assert found.speed.tokens_s.likely == pytest.approx(search.chosen.cost.tokens_s, rel=0.02)


def test_a_model_and_a_machine_that_are_known_give_every_figure(tmp_path: Path) -> None:
    found = told(prepared(tmp_path))
    assert found.work is not None
    assert found.outlook is not None
    assert found.speed is not None
    assert (found.work.rows.likely, found.work.prompt_p95) == (ROWS, 100)
    assert found.work.prompt_tokens.likely == pytest.approx(100)
    assert (found.work.new_tokens.least, found.work.new_tokens.most) == (100, 400)
    assert (found.prompts, found.answers) == (
        "guessed: 4 characters a token",
        "guessed: half of max_tokens, 400",
    )
    assert found.speed.source == "by the cost model"
    assert 1000 < found.speed.tokens_s.likely < 100_000
    hours = found.outlook.gpu_hours
    assert hours is not None
    assert hours.likely == pytest.approx(found.outlook.wall_s.likely * 4 / 3600, rel=0.2)
    lines = dict(outlook_rows(found))
    assert list(lines) == [
        *("rows", "prompts", "answers", "speed", "wall time", "", "GPU hours", "time", "restarts")
    ]
    assert lines["rows"] == "3,000"
    assert lines["time"].startswith("2h asked for; without a restart ")
    assert lines["restarts"] == "0 by the time limit; 20 allowed"
    assert outlook_line(found).startswith("expected: ")


def worked(folder: Path, job: Prepared, *, minutes: int, tokens_s: float = 500) -> RunDir:
    """An earlier run of ``job``, on the list of runs: 300 tokens for each of its rows."""
    plan = job.resolution.plan
    run = make_run(folder / "earlier", job.identity, plans={"0001": plan})
    remember(run)
    now = 0.0
    log = WorkerLog(run.path / "metrics", "a", plan="0001", clock=lambda: now)
    rows = int(minutes * 60 * tokens_s / 300)
    counts = {"overlay": 0, "unit": 0, "ok": rows, "error": 0}
    log.part({**counts, "prompt_tokens": 110 * rows, "completion_tokens": 300 * rows})
    for at_s in range(0, minutes * 60 + 5, 5):
        now = 50.0 + at_s
        made = int(tokens_s * at_s)
        done = made // 300
        beat: dict[str, Any] = {
            "rows": done,
            "prompt_tokens": 110 * done,
            "completion_tokens": made,
        }
        log.beat(Beat(replica=0, phase="running", **beat))
    log.close(answer_p95_s=20)
    return run


def test_an_earlier_run_takes_the_place_of_model_and_guess(tmp_path: Path) -> None:
    job = prepared(tmp_path)
    run = worked(tmp_path, job, minutes=10)
    found = told(job)
    assert found.speed is not None
    assert found.speed.tokens_s.likely == pytest.approx(500, rel=0.01)
    assert found.speed.longest_s == 20
    assert found.speed.source == f"measured in {run.path} on {datetime.now().date()}"  # noqa: DTZ005 - the user's day
    assert found.answers == found.prompts == f"measured in {run.path}, 1000 rows"
    assert found.work is not None
    assert found.work.new_tokens.likely == pytest.approx(300)
    assert found.work.prompt_tokens.likely == pytest.approx(110)
    assert found.terms.start_s.likely == 50


def test_a_try_of_a_minute_tells_how_long_answers_are_and_nothing_of_speed(tmp_path: Path) -> None:
    job = prepared(tmp_path)
    worked(tmp_path, job, minutes=1)
    found = told(job)
    assert found.answers.startswith("measured in")
    assert found.speed is not None
    assert found.speed.source == "by the cost model"


def test_a_run_with_rows_of_another_length_is_another_work(tmp_path: Path) -> None:
    job = prepared(tmp_path)
    worked(tmp_path, job, minutes=10)
    (tmp_path / "rows.jsonl").write_bytes(json_lines([{"text": "word " * 800}] * 400))
    found = told(prepared(tmp_path))
    assert found.speed is not None
    assert found.speed.source == "by the cost model"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"engine": "echo", "runtime": {}}, "engine echo is not modelled"),
        ({"engine": "transformers"}, "engine transformers is not modelled"),
    ],
)
def test_what_is_not_known_is_said_and_stops_nothing(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    found = told(prepared(tmp_path, **changes))
    assert (found.speed, found.outlook, found.unknown) == (None, None, why)
    assert dict(outlook_rows(found))["speed"] == f"not known: {why}"
    assert outlook_line(found) == f"what it takes is not known: {why}"


def test_a_gpu_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SITE.replace("h100", "x9000") % "requeue")
    assert "x9000" in told(prepared(tmp_path)).unknown


def test_a_run_that_was_begun_has_less_to_do(tmp_path: Path) -> None:
    job = prepared(tmp_path)
    whole = told(job)
    run = make_run(job.run.path, job.identity)
    run.part_path(0).write_text("")
    begun = told(job)
    assert 0 < begun.left < 1
    assert begun.work is not None
    assert whole.work is not None
    assert begun.work.rows.likely == pytest.approx(begun.left * ROWS)
    assert "left" in dict(outlook_rows(begun))["rows"]
    for unit in grid.units(job.identity.grid):
        run.part_path(unit).write_text("")
    assert told(job).unknown == "nothing of the input is left to do"


@pytest.mark.parametrize(
    ("restart", "attempts", "hint"),
    [
        ("requeue", 1, "set limits.attempts to"),
        ("chain", 2, "set limits.attempts to"),
        ("none", 1, "or go on with `hpc-llm resume`"),
    ],
)
def test_too_few_attempts_are_told_with_the_number_that_would_do(
    tmp_path: Path, restart: str, attempts: int, hint: str
) -> None:
    (tmp_path / "mine.yaml").write_text(SITE % restart)
    (tmp_path / "rows.jsonl").write_bytes(json_lines([{"text": "word " * 80}] * 60_000))
    short = {"time": "8m"}
    limits = {"warn_before": "2m", "attempts": attempts}
    found = told(prepared(tmp_path, resources=short, limits=limits, replicas=1))
    [problem] = [p for p in found.warnings if p.code == "plan.attempts"]
    assert problem.severity == "warning"
    assert problem.hint is not None
    assert hint in problem.hint
    assert found.outlook is not None
    if restart != "none":
        assert str(found.outlook.attempts_needed) in problem.hint
        enough = {**limits, "attempts": found.outlook.attempts_needed}
        again = told(prepared(tmp_path, resources=short, limits=enough, replicas=1))
        assert "plan.attempts" not in codes(again)


def test_a_time_that_the_start_takes_up_is_told(tmp_path: Path) -> None:
    slow = {"model": "llama-3.1-70b", "parallelism": {"tp": 4}, "replicas": 1}
    limits = {"warn_before": "1m"}
    found = told(prepared(tmp_path, **slow, resources={"time": "200s"}, limits=limits))
    assert "plan.slow-start" in codes(found)
    assert "plan.slow-start" not in codes(told(prepared(tmp_path, **slow)))


def test_more_allocations_than_run_at_once_do_not_make_it_faster(tmp_path: Path) -> None:
    resources = {"time": "2h", "gpus_per_node": 1}
    few = told(prepared(tmp_path, resources=resources, replicas=2))
    many = told(prepared(tmp_path, resources={**resources, "at_once": 2}, replicas=8))
    assert few.terms.replicas == many.terms.replicas
    assert few.terms.gpus == many.terms.gpus


@pytest.mark.parametrize(
    ("site", "changes", "codes_expected"),
    [
        (
            SITE.replace("link: nvlink4, topology: all-to-all,", "link: pcie,"),
            {"parallelism": {"tp": 2}, "replicas": 2},
            ["plan.tp-over-pcie"],
        ),
        (SITE, {"parallelism": {"tp": 1, "pp": 4}, "replicas": 8}, []),
        (SITE, {"model": "llama-3.1-70b", "parallelism": {"tp": 4}}, ["plan.unquantised"]),
        (SITE, {"parallelism": {"tp": 2}, "replicas": 2}, []),
        (
            SITE.replace("h100", "a100"),
            {"model": "llama-3.1-70b", "parallelism": {"tp": 4}},
            [],
        ),
        (SITE, {"model": "llama-3.1-405b-fp8", "parallelism": {"tp": 4, "pp": 2}}, []),
    ],
)
def test_what_works_and_wastes_gpus_is_told(
    tmp_path: Path, site: str, changes: dict[str, Any], codes_expected: list[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(site % "requeue")
    found = codes(told(prepared(tmp_path, **changes)))
    assert found == codes_expected


def test_stages_with_too_few_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(json_lines([{"text": "a few"}] * 40))
    cut = {"parallelism": {"tp": 1, "pp": 4}, "replicas": 1}
    assert "plan.pp-few-rows" in codes(told(prepared(tmp_path, **cut)))
    (tmp_path / "rows.jsonl").write_bytes(json_lines([{"text": "a few"}] * 400))
    assert "plan.pp-few-rows" not in codes(told(prepared(tmp_path, **cut)))


def test_the_start_is_what_the_scheduler_says_or_why_it_says_nothing(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    plan = prepared(tmp_path).resolution.plan
    assert expected_start(plan).at == datetime(2037, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as Slurm has it
    assert "--time=0-02:00:00" in slurm.calls("sbatch")[0]["words"]
    slurm.fail("sbatch", code=1, stderr="allocation failure: Invalid account\nmore\n")
    assert expected_start(plan).why == "`sbatch` exited 1: allocation failure: Invalid account"
    said = "sbatch: Job 7 to start at 2026-02-31T10:00:00 using 8 processors"
    slurm.fail("sbatch", stderr=said)
    assert expected_start(plan).at is None
    assert expected_start(plan).why is not None


def run_cli(folder: Path, *words: str) -> dict[str, Any]:
    site = ("--site", str(folder / "mine.yaml"))
    done = CliRunner().invoke(main, [*words, str(folder / "job.yaml"), *site, "--output", "json"])
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == 0
    return found


def test_plan_gives_it_as_data_with_the_start(tmp_path: Path) -> None:
    prepared(tmp_path)
    data = run_cli(tmp_path, "plan")["data"]["outlook"]
    assert data["work"]["rows"] == {"least": ROWS, "likely": ROWS, "most": ROWS}
    assert data["outlook"]["gpu_hours"]["least"] < data["outlook"]["gpu_hours"]["most"]
    assert data["start"] == {"at": "2037-01-02T03:04:05", "why": None}


def test_submit_says_what_it_will_cost_and_does_not_ask_for_a_start(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    prepared(tmp_path, engine="echo", runtime={}, model="echo")
    dry = run_cli(tmp_path, "submit", "--dry-run")["data"]
    assert dry["outlook"]["unknown"] == "engine echo is not modelled"
    assert "start" not in dry["outlook"]
    site = ("--site", str(tmp_path / "mine.yaml"))
    done = CliRunner().invoke(main, ["submit", str(tmp_path / "job.yaml"), *site])
    assert done.exit_code == 0
    assert "what it takes is not known: engine echo is not modelled" in done.stdout
    assert not any("--test-only" in call["words"] for call in slurm.calls("sbatch"))
