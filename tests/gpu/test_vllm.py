"""vLLM through rendered scripts, on GPUs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli
from fake_mpirun import write_mpirun
from gpu_runs import GpuRun, gpu_numbers, render

pytestmark = [pytest.mark.timeout(400)]

QUESTIONS = Path(__file__).resolve().parents[2] / "jobs/prompts/questions.jsonl"
# No compilation and no CUDA graphs: half a minute less for each start. A small share of the
# memory lets a start begin while the driver still frees what a killed one held. With a KV cache
# of given size vLLM does not look at what is free before and after a first step, in which other
# tests on the same GPU may come or go (vllm/v1/worker/gpu_worker.py, determine_available_memory).
QUICK: Mapping[str, Any] = {
    "enforce_eager": True,
    "gpu_memory_utilization": 0.2,
    "kv_cache_memory_bytes": 8 * 1024**3,
    "max_model_len": 1024,
}
STORIES = {"prompt": "Tell a long story about the number {{ number }} and its friends."}
# Bytes of weights of the model that fits no GPU there is: 80 layers of 12 GB.
TOO_LARGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 16384,
    "intermediate_size": 114688,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
HOG = """
import sys, torch
held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.9), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in QUESTIONS.read_text().splitlines()]


def stories(count: int) -> list[dict[str, Any]]:
    return [{"id": f"story-{number}", "number": number} for number in range(count)]


def ask(cli: Cli, folder: Path, engine: str, model: Path, **job: Any) -> GpuRun:
    """A run that answers the questions, and one prompt that is longer than the model allows."""
    rows = [*questions(), {"id": "long", "question": "why " * 2000}]
    given: dict[str, Any] = {
        "engine": engine,
        "model": str(model),
        "input": {"path": "in.jsonl", "prompt": "{{ question }}"},
        "sampling": {"max_tokens": 32},
        "limits": {"max_bad_fraction": 0.5},
        "engine_options": dict(QUICK),
    }
    return render(cli, folder, rows, **(given | job))


def tell(cli: Cli, folder: Path, engine: str, model: Path, count: int, **job: Any) -> GpuRun:
    """A run that takes a while."""
    given: dict[str, Any] = {
        "engine": engine,
        "model": str(model),
        "input": {"path": "in.jsonl", **STORIES},
        "sampling": {"max_tokens": 64},
        "engine_options": {**QUICK, "max_num_seqs": 64},
    }
    return render(cli, folder, stories(count), **(given | job))


def check_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    assert [row["id"] for row in rows] == [*(q["id"] for q in questions()), "long"]
    assert [row["status"] for row in rows] == ["ok"] * (len(rows) - 1) + ["error"]
    assert rows[-1]["error"]["code"] == "prompt_too_long"
    assert rows[0]["response"]["text"] == "The capital of France is Paris."
    assert rows[0]["usage"] == {"prompt_tokens": 37, "completion_tokens": 8, "total_tokens": 45}
    assert rows[0]["finish_reason"] == "stop"


def check_stories(run: GpuRun, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every row of the input once, at its own place, in order."""
    offset, places = 0, []
    for line in (run.path.parent / "in.jsonl").read_bytes().splitlines(keepends=True):
        places.append([0, offset])
        offset += len(line)
    assert [row["row"] for row in rows] == places
    assert [row["id"] for row in rows] == [story["id"] for story in stories(len(rows))]
    assert {row["status"] for row in rows} == {"ok"}


def is_runner(words: Sequence[str]) -> bool:
    return "launcher.runner" in words and "--rank" in words


def is_preparer(words: Sequence[str]) -> bool:
    return "launcher.runner.preparer" in words


def is_engine_core(words: Sequence[str]) -> bool:
    return words[0].startswith("VLLM::EngineCore")


def codes(run: GpuRun) -> list[str]:
    return [problem["code"] for problem in run.problems()]


@pytest.fixture
def hog() -> Iterator[None]:
    """Another process that holds nearly all of the first GPU's memory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


@pytest.mark.gpu
def test_one_gpu_answers_rightly_what_other_processes_prepare(
    cli: Cli, tmp_path: Path, vllm: str, smollm2: Path
) -> None:
    run = ask(cli, tmp_path / "one", vllm, smollm2)
    with run.start() as started:
        started.until(lambda: started.all(is_preparer), "a process that prepares prompts")
        assert started.ended() == 0, run.log_tail()
    check_answers(run.rows())
    assert run.gpus() == gpu_numbers()[:1]


@pytest.mark.gpu
def test_a_seed_decides_what_is_drawn(cli: Cli, tmp_path: Path, vllm: str, smollm2: Path) -> None:
    rows = [{"id": str(i), "number": 7} for i in range(6)]
    job: dict[str, Any] = {
        "engine": vllm,
        "model": str(smollm2),
        "input": {"path": "in.jsonl", **STORIES},
        "sampling": {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 11},
        "engine_options": dict(QUICK),
    }
    run = render(cli, tmp_path / "drawn", rows, **job)
    texts = [row["response"]["text"] for row in run.complete()]
    assert len(set(texts)) > 1  # equal prompts draw from seeds of their own


@pytest.mark.gpu
def test_log_probabilities_are_those_of_the_model(
    cli: Cli, tmp_path: Path, vllm: str, smollm2: Path
) -> None:
    run = ask(cli, tmp_path / "l", vllm, smollm2, sampling={"max_tokens": 32, "logprobs": 5})
    rows = run.complete()
    check_answers(rows)
    for row in rows[:-1]:
        told = row["response"]["logprobs"]["content"]
        assert len(told) == row["usage"]["completion_tokens"]
        assert "".join(each["token"] for each in told).startswith(row["response"]["text"])
        for each in told:
            top = [other["logprob"] for other in each["top_logprobs"]]
            assert len(top) == 5
            assert top == sorted(top, reverse=True)
            assert each["logprob"] == top[0]  # greedy
            assert 0 < sum(map(math.exp, top)) < 1 + 1e-4
    assert rows[0]["response"]["logprobs"]["content"][-1]["token"] == "<|im_end|>"


@pytest.mark.gpu
@pytest.mark.timeout(700)
def test_whatever_is_killed_each_row_comes_once_and_in_order(
    cli: Cli, tmp_path: Path, vllm: str, smollm2: Path
) -> None:
    limits = {"engine_restarts": 0}
    run = tell(cli, tmp_path / "killed", vllm, smollm2, 1500, limits=limits)
    kept: dict[str, bytes] = {}
    for victim, code in ((is_runner, "run.died"), (is_engine_core, "engine.died")):
        with run.start() as started:
            started.until(lambda: len(run.parts()) >= len(kept) + 5, "five more parts")  # noqa: B023 - called here
            os.kill(started.find(victim), signal.SIGKILL)
            assert started.ended() == 7, run.log_tail()
        assert codes(run) == [code], run.log_tail()
        assert kept.items() <= run.parts().items()  # byte by byte
        kept = run.parts()
        assert len(kept) < 200
    check_stories(run, run.complete())
    assert kept.items() <= run.parts().items()


@pytest.mark.gpu
def test_an_engine_core_that_is_killed_is_started_again_in_its_job(
    cli: Cli, tmp_path: Path, vllm: str, smollm2: Path
) -> None:
    run = tell(cli, tmp_path / "again", vllm, smollm2, 1500)
    with run.start() as started:
        started.until(lambda: len(run.parts()) >= 5, "five parts")
        kept, runner, core = run.parts(), started.find(is_runner), started.find(is_engine_core)
        os.kill(core, signal.SIGKILL)
        told = lambda: [beat["engine_restarts"] for beat in run.beats()] == [1]  # noqa: E731 - said once
        started.until(told, "a beat that tells of another engine")
        started.until(lambda: started.all(is_engine_core), "another engine core")
        assert started.find(is_runner) == runner
        assert started.find(is_engine_core) != core
        assert started.ended() == 0, run.log_tail()
    (log,) = run.path.glob("logs/*.s0.log")
    assert log.read_text().count("it is started again") == 1
    check_stories(run, run.rows())
    assert kept.items() <= run.parts().items()


@pytest.mark.gpu
def test_a_model_larger_than_the_gpu_is_named(cli: Cli, tmp_path: Path, vllm: str) -> None:
    model = tmp_path / "large"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TOO_LARGE))
    options = {**QUICK, "gpu_memory_utilization": 0.9, "load_format": "dummy"}
    options["skip_tokenizer_init"] = True
    source = {"path": "in.jsonl", "chat": False, **STORIES}
    run = tell(cli, tmp_path / "l", vllm, model, 10, engine_options=options, input=source)
    assert run.start().ended() == 7, run.log_tail()
    assert codes(run) == ["engine.no-memory"], run.log_tail()
    assert run.parts() == {}


@pytest.mark.gpu
@pytest.mark.usefixtures("hog")
def test_a_gpu_that_another_process_fills_is_named(
    cli: Cli, tmp_path: Path, vllm: str, smollm2: Path
) -> None:
    run = ask(cli, tmp_path / "busy", vllm, smollm2)
    assert run.start().ended() == 7, run.log_tail()
    assert codes(run) == ["gpu.in-use"], run.log_tail()


@pytest.mark.multigpu
@pytest.mark.parametrize("cut", [{"tp": 2}, {"pp": 2}], ids=["tp2", "pp2"])
def test_two_gpus_of_one_replica_answer_rightly(
    cli: Cli, tmp_path: Path, vllm: str, wide: Path, cut: dict[str, int]
) -> None:
    run = ask(cli, tmp_path / "cut", vllm, wide, parallelism=cut)
    check_answers(run.complete())
    assert run.gpus() == ["0,1"]


@pytest.mark.multigpu
def test_mpirun_starts_a_replica_of_two_gpus_too(
    cli: Cli, tmp_path: Path, vllm: str, wide: Path, mpirun: dict[str, str]
) -> None:
    run = ask(cli, tmp_path / "mpi", vllm, wide, parallelism={"tp": 2}, launch=mpirun)
    check_answers(run.complete())
    assert run.gpus() == ["0,1"]


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    """Where an mpirun is that starts a task on each of two "nodes" of one GPU."""
    return write_mpirun(tmp_path / "bin", ("0", "1"))


@pytest.mark.multigpu
@pytest.mark.parametrize("cut", [{"pp": 2}, {"tp": 2}], ids=["pp2", "tp2"])
def test_two_nodes_of_one_gpu_answer_rightly(
    cli: Cli, tmp_path: Path, vllm: str, wide: Path, two_nodes: Path, cut: dict[str, int]
) -> None:
    job: dict[str, Any] = {"parallelism": cut, "allow": ["tp-over-fabric"]}
    run = ask(cli, tmp_path / "nodes", vllm, wide, mpirun_of_nodes=two_nodes, **job)
    check_answers(run.complete())
    assert run.gpus() == ["0", "1"]


@pytest.mark.multigpu
@pytest.mark.timeout(700)
def test_a_later_node_that_is_killed_is_named_and_takes_the_first_one_along(
    cli: Cli, tmp_path: Path, vllm: str, wide: Path, two_nodes: Path
) -> None:
    job: dict[str, Any] = {"parallelism": {"pp": 2}, "mpirun_of_nodes": two_nodes}
    run = tell(cli, tmp_path / "nodes", vllm, wide, 1500, **job)
    with run.start() as started:
        started.until(lambda: len(run.parts()) >= 5, "five parts")
        os.kill(started.find(lambda words: is_runner(words) and words[-2] == "1"), signal.SIGKILL)
        assert started.ended() == 7, run.log_tail()
    assert codes(run) == ["run.died"], run.log_tail()
    check_stories(run, run.complete())


@pytest.mark.multigpu
def test_two_replicas_share_the_rows_on_a_gpu_each(
    cli: Cli, tmp_path: Path, vllm: str, smollm2: Path
) -> None:
    run = tell(cli, tmp_path / "two", vllm, smollm2, 3000, replicas=2)
    check_stories(run, run.complete())
    assert run.gpus() == ["0", "1"]
    published = [path.read_bytes().count(b"\n") for path in run.path.glob("metrics/*.jsonl")]
    assert len(published) == 2
    assert min(published) > max(published) / 4
