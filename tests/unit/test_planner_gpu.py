"""The driver that holds the planner against vLLM on GPUs, as far as it goes without any."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from vllm_standin import STANDINS

from benchmarks.planner_gpu import ONE, TWO, read_shapes
from benchmarks.planner_predict import (
    BYTES_STEP,
    PLANS,
    Card,
    Case,
    Plan,
    find_card,
    predict,
    read_models,
)
from benchmarks.planner_told import judged, lines_of, read_log, steady, summary
from launcher.models.catalogue import BUILTIN
from launcher.models.shapes import shape_from_config
from launcher.plan.types import Cut

ROOT = Path(__file__).resolve().parents[2]
MODELS = read_models()
H100, _ = find_card("NVIDIA H100 80GB HBM3", 81559.0, 1)
H200, _ = find_card("NVIDIA H200", 143771.0, 2)
# Two GPUs that are never asked for anything.
NVIDIA_SMI = """#!/bin/sh
case "$*" in
  *-lms*) while sleep 0.2; do for g in 0 1; do echo "$g, 50, 70000, 81559, 600"; done; done ;;
  *name,memory.total*) for g in 0 1; do echo "$g, NVIDIA H100 80GB HBM3, 81559"; done ;;
  *memory.used*) for g in 0 1; do echo "$g, 4"; done ;;
  *) echo "NVIDIA H100 80GB HBM3, 580.1, 81559 MiB" ;;
esac
"""
LOG = """\
(EngineCore pid=7) INFO 11-23 02:19 [model_runner.py:303] Model loading took 14.99 GiB and 1 seconds
(EngineCore pid=7) INFO 11-23 02:19 [cuda.py:1] Using FLASH_ATTN attention backend out of 3.
(EngineCore pid=7) INFO 11-23 02:20 [gpu_worker.py:508] Available KV cache memory: 54.5 GiB
(EngineCore pid=8) INFO 11-23 02:20 [gpu_worker.py:508] Available KV cache memory: 53.5 GiB
(EngineCore pid=7) INFO 11-23 02:20 [kv_cache_utils.py:2146] GPU KV cache size: 446,208 tokens
(EngineCore pid=7) INFO 11-23 02:21 [x.py:1] Graph capturing finished in 5 secs, took 0.51 GiB
"""
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 28.00 GiB. GPU 0"


def case(model: str, plan: Plan = "default", **cut: int) -> Case:
    return Case(model=model, cut=Cut(**cut), plan=plan)


def result(plan: str, said: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    return {"name": "m", "plan": plan, "options": {}, "said": said, "measured": measured}


@pytest.mark.parametrize("name", sorted(MODELS.keys() & BUILTIN.keys()))
def test_configs_are_those_of_the_catalogue(name: str) -> None:
    given, built = shape_from_config(name, MODELS[name]), BUILTIN[name]
    same = dataclasses.replace(given, classes=built.classes, max_position_embeddings=None)
    assert same == built


def test_at_least_six_shapes_are_wanted_and_all_have_a_config() -> None:
    one, all_ = (read_shapes(words, ["default"]) for words in (ONE, f"{TWO},{ONE}"))
    assert len(one) >= 6
    assert {each.model for each in all_} <= MODELS.keys()
    assert {each.cut for each in all_} >= {Cut(tp=2), Cut(pp=2)}


@pytest.mark.parametrize("card", [H100, H200], ids=["h100", "h200"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", ONE.split(","))
def test_plans_lie_on_the_side_that_they_are_to_show(model: str, plan: Plan, card: Card) -> None:
    said = predict(MODELS[model], case(model, plan), card)
    if plan == "below" and said is None:
        return  # even a twentieth of a large GPU holds a small model
    assert said is not None
    assert said.fit.fits == (plan in {"default", "full", "least"})
    assert said.fit.may_fit == said.fit.fits


def test_a_step_more_than_the_largest_cache_is_not_accepted() -> None:
    full, over = (
        predict(MODELS["llama-3.1-8b"], case("llama-3.1-8b", p), H100) for p in PLANS[1:3]
    )
    assert full is not None
    assert over is not None
    (stage,) = full.fit.stages
    assert stage.margin <= stage.free < stage.margin + BYTES_STEP
    assert over.options["kv_cache_memory_bytes"] > full.options["kv_cache_memory_bytes"]


def test_rows_in_flight_are_no_more_than_are_read_in_the_time_that_is_given() -> None:
    whole = predict(MODELS["gpt-oss-20b"], case("gpt-oss-20b"), H100, fill_s=1e6)
    some = predict(MODELS["gpt-oss-20b"], case("gpt-oss-20b"), H100, fill_s=5.0)
    assert whole is not None
    assert some is not None
    assert whole.cost is not None
    assert some.cost is not None
    assert whole.cost.batch_limit == "max-batch-size"
    assert some.cost.batch_limit == "rows"
    assert some.figures()["fill_s"] <= 5.0


def test_windows_hold_a_whole_step_more_where_vllm_counts_its_cache() -> None:
    said = predict(MODELS["gemma-3-27b"], case("gemma-3-27b"), H100)
    assert said is not None
    (stage,) = said.fit.stages
    # A step of 16,384 tokens is longer than the sequence: windows save nothing there.
    assert said.logged_tokens == stage.kv_bytes // stage.kv_per_token
    assert said.fit.kv_tokens > said.logged_tokens


def test_a_gpu_that_the_planner_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="Radeon VII with 16384 MiB"):
        find_card("Radeon VII", 16384.0, 1)


@pytest.mark.parametrize("word", ["", "m:tp", "m:ep2", "m:tp2:pp2"])
def test_what_is_no_shape_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not MODEL"):
        read_shapes(word, PLANS)


def test_shapes_are_first_all_measured_at_vllm_s_own_share() -> None:
    cases = read_shapes("a,b:tp2", ["default", "full", "over"])
    assert [(each.name, each.plan) for each in cases] == [
        ("a", "default"),
        ("b tp 2", "default"),
        ("a", "full"),
        ("a", "over"),
        ("b tp 2", "full"),
        ("b tp 2", "over"),
    ]


def test_of_a_log_the_fullest_worker_counts() -> None:
    found = read_log(LOG)
    assert found["kv_tokens"] == 446208
    assert found["kv"] == int(53.5 * 2**30)
    assert found["weights"] == int(14.99 * 2**30)
    assert found["graphs"] == int(0.51 * 2**30)
    assert found["kernels"] == ["Using FLASH_ATTN attention backend out of 3."]
    assert "ran_out" not in found


@pytest.mark.parametrize(
    "text",
    [
        OUT_OF_MEMORY,
        "ValueError: No available memory for the cache blocks. Try increasing",
        "ValueError: To serve at least one request with the models's max seq len (4096), (1.0 GiB",
    ],
)
def test_each_way_to_run_out_of_memory_is_told(text: str) -> None:
    assert read_log(f"{LOG}{text}\n")["ran_out"] in text


def test_a_log_that_tells_nothing_has_nothing() -> None:
    assert read_log("Killed\n") == {"kernels": []}


def beats(*running: float, every_s: float = 1.0) -> list[list[float]]:
    return [
        [100.0 + n * every_s, n, 1000.0 * n, 50.0 * n * n, rows, 3, 0.5]
        for n, rows in enumerate(running)
    ]


def test_a_rate_begins_once_all_rows_run() -> None:
    found = steady(beats(10, 50, 96, 100, 99, 100, 100, 100, 98))
    assert found is not None
    assert (found["from"], found["to"]) == (102.0, 108.0)
    assert found["tokens_s"] == pytest.approx(50 * (64 - 4) / 6)
    assert found["prompt_tokens_s"] == 1000.0
    assert found["sequences"] == pytest.approx(99, abs=0.2)


@pytest.mark.parametrize("samples", [[], beats(0, 0, 0), beats(1, 2, 100, 100), beats(5)])
def test_a_time_that_is_too_short_has_no_rate(samples: list[list[float]]) -> None:
    assert steady(samples) is None


FITS, NOT = {"fits": True}, {"fits": False}


@pytest.mark.parametrize(
    ("plan", "said", "measured", "right"),
    [
        ("default", {"kv_tokens": 109}, {"kv_tokens": 100}, {"kv": True}),
        ("default", {"kv_tokens": 89}, {"kv_tokens": 100}, {"kv": False}),
        ("default", {"tokens_s": 131}, {"tokens_s": 100}, {"rate": False}),
        ("default", {"tokens_s": 71}, {"tokens_s": 100}, {"rate": True}),
        ("full", FITS, {"rows": 5}, {"plan": True}),
        ("full", FITS, {"rows": 5, "ran_out": "CUDA out of memory"}, {"plan": False}),
        ("over", NOT, {"rows": 0, "ran_out": "CUDA out of memory"}, {"plan": True}),
        ("over", NOT, {"rows": 900, "ran_out": "CUDA out of memory"}, {"plan": True}),
        ("over", NOT, {"rows": 5}, {"plan": False}),
        ("full", FITS, {"failed": "no end in 200 s"}, {}),
        ("below", NOT, {"left_out": "no time"}, {}),
    ],
)
def test_what_was_measured_is_held_against_what_was_said(
    plan: str, said: dict[str, Any], measured: dict[str, Any], right: dict[str, bool]
) -> None:
    assert judged(result(plan, said, measured)) == right


def test_what_was_not_measured_is_counted_and_is_no_success() -> None:
    good = result("full", FITS, {"rows": 5})
    text, success = summary([good])
    assert success
    assert "plans as counted: 1 of 1" in text
    text, success = summary([good, result("over", NOT, {"left_out": "no time"})])
    assert not success
    assert text.endswith("not measured: 1")
    assert not summary([])[1]


def drive(folder: Path, standin: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    """The driver over the stand-in and two GPUs that are none."""
    smi = folder / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(NVIDIA_SMI)
    smi.chmod(0o755)
    models = {"llama-3.2-1b": MODELS["llama-3.2-1b"] | {"standin": standin}}
    (folder / "models.json").write_text(json.dumps(models))
    environ = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | {
        "PATH": f"{smi.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{STANDINS}",
        "OUT": str(folder),
        "TMPDIR": str(folder),
    }
    script = str(ROOT / "benchmarks" / "planner_gpu.py")
    given = ["--models", "models.json", "--fill-s", "0.1", "--seconds", "5.5", "--probe-s", "0.5"]
    return subprocess.run(
        [sys.executable, script, *given, *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((folder / "planner_gpu.json").read_bytes())["results"]
    return {(each["name"], each["plan"]): each for each in found}


def test_each_case_is_measured_and_told(tmp_path: Path) -> None:
    said = predict(MODELS["llama-3.2-1b"], case("llama-3.2-1b"), H100)
    assert said is not None
    standin = {"kv_tokens": said.logged_tokens, "latency_s": 0.2, "room_bytes": 79 * 10**9}
    shapes = "llama-3.2-1b,llama-3.2-1b:tp2"
    done = drive(tmp_path, standin, "--shapes", shapes, "--plans", "default,full,over")
    found = results(tmp_path)
    assert len(found) == 6, done.stderr
    one = found["llama-3.2-1b", "default"]
    assert one["right"]["kv"] is True
    assert one["measured"]["tokens_s"] > 100
    assert one["measured"]["peak"] == 70000 * 2**20
    assert found["llama-3.2-1b", "full"]["right"] == {"plan": True}
    assert found["llama-3.2-1b", "over"]["right"] == {"plan": True}
    assert found["llama-3.2-1b tp 2", "default"]["measured"]["rows"] > 0
    assert "| llama-3.2-1b | over | kv_cache_memory_bytes " in done.stdout
    assert "plans as counted: 4 of 4" in done.stdout
    assert done.returncode == 1  # no rate is what the stand-in's is


def test_an_engine_that_has_been_imported_waits_for_its_gate(tmp_path: Path) -> None:
    worker = tmp_path / "vllm" / "v1" / "worker" / "gpu_worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text("print('imported', flush=True)\n")
    gate = tmp_path / "gate"
    environ = os.environ | {
        "PYTHONPATH": f"{ROOT / 'benchmarks' / 'gpu_gate'}:{tmp_path}",
        "GPU_GATE": str(gate),
    }
    code = "import vllm.v1.worker.gpu_worker; print('used')"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        gate.touch()
        assert process.stdout.read() == "used\n"
        assert process.wait(10) == 0


def test_when_time_runs_out_there_is_what_was_found_until_then(tmp_path: Path) -> None:
    words = ("--shapes", "llama-3.2-1b,llama-3.2-1b:tp2", "--plans", "default", "--limit-s", "30")
    done = drive(tmp_path, {"start": "hang"}, *words)
    found = results(tmp_path)
    assert {each["measured"].get("left_out") for each in found.values()} == {"no time"}
    assert "not measured: 2" in done.stdout
    assert done.returncode == 1


def test_at_the_deadline_what_runs_is_ended_and_the_rest_left_out(tmp_path: Path) -> None:
    shapes = "llama-3.2-1b,llama-3.2-1b:tp2"
    words = ("--shapes", shapes, "--plans", "full", "--start-s", "4", "--limit-s", "8")
    began = time.monotonic()
    done = drive(tmp_path, {"start": "hang"}, *words)
    assert time.monotonic() - began < 20
    found = results(tmp_path)
    ended, left_out = found["llama-3.2-1b", "full"], found["llama-3.2-1b tp 2", "full"]
    assert ended["measured"]["failed"].startswith("no end in ")
    assert left_out["measured"] == {"left_out": "no time"}
    assert "not measured: 2" in done.stdout
    gone = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in said_by(p)]
    assert gone == []


def said_by(process: Path) -> str:
    try:
        return process.read_text(errors="replace")
    except OSError:  # it has just ended
        return ""


def test_a_plan_that_unexpectedly_runs_out_is_off(tmp_path: Path) -> None:
    words = ("--shapes", "llama-3.2-1b", "--plans", "full")
    done = drive(tmp_path, {"start": "weights"}, *words)
    (found,) = results(tmp_path).values()
    assert found["right"] == {"plan": False}
    assert "not enough GPU memory" in found["measured"]["ran_out"]
    assert "**off**" in done.stdout
    assert done.returncode == 1


def test_lines_are_those_of_a_table() -> None:
    said: dict[str, Any] = {
        "weights": 2**30,
        "activations": 0,
        "graphs": 0,
        "reserve": 2**30,
        "peak": 2**32,
    }
    said |= {
        "kv_bytes": 2**31,
        "kv_tokens": 1000,
        "tokens_s": 500.0,
        "sequences": 8,
        "limit": "math",
    }
    told: dict[str, Any] = {"weights": 2**30, "kv": 2**31, "kv_tokens": 1000, "peak": 2**32}
    told |= {"tokens_s": 1000.0, "sequences": 8.0, "rows": 9}
    lines = list(lines_of([result("default", said, told)]))
    assert "| m | 1.00 / 1.00 | 1.00 / 1.00 | 4.00 / 4.00 | 1,000 | 1,000 | 1.00 | right |" in lines
    assert "| m | 8 | 8 | 500 | 1,000 | 0.50 | **off** | math |" in lines
