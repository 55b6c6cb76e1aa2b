"""The stand-in for TensorRT-LLM over real ranks, as its own launch scripts start them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cli_driving import poll
from cluster.cluster import Cluster
from trtllm_standin import LAUNCH_SCRIPTS, python_path, write_checkpoint

pytestmark = pytest.mark.slurm

TASK = Path(__file__).parents[1] / "trtllm_task.py"
# What hangs for so long hangs for good: nothing in a step takes a tenth of it.
HANGS_S = 3.0
SRUN = ("srun", "--mpi=pmix", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--time=2")
LANDMARKS = (
    "Prefetching ",
    "Loading safetensors weights in parallel",
    "[MemUsageChange] Allocated 0.56 GiB",
    "max_seq_len=64, ",
    "Autotuning process starts",
    "Creating CUDA graph instances",
    "Memory used after loading model weights (inside torch)",
    "Peak memory during memory usage profiling",
    "Estimated max memory in KV cache :",
    "[MemUsageChange] Allocated 55.74 GiB",
)

# The launch script takes a port that is free when it looks, and other tests are at work beside
# these: a network of one's own.
_ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
MPIRUN = (*_ALONE, "mpirun", "--oversubscribe", "-np", "2")


class Step:
    """Ranks with the launch script ``variant``, and what all of them write."""

    def __init__(self, cluster: Cluster, folder: Path, words: Sequence[str | Path]) -> None:
        self.log = folder / "log"
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": python_path(),
            "TLLM_LOG_LEVEL": "INFO",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        if "mpirun" in words:
            own["CUDA_VISIBLE_DEVICES"] = "0,1"
        outside = {k: v for k, v in os.environ.items() if "SLURM" not in k}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                env=cluster.environment(outside | own),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, pattern: str) -> str:
        found: re.Match[str] = poll(lambda: re.search(pattern, self.text()), pattern)
        return found[0]

    def code(self) -> int:
        return self.process.wait(60)

    def hangs(self) -> bool:
        try:
            self.process.wait(HANGS_S)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
                return

    def answers(self) -> list[list[str]]:
        return [json.loads(line) for line in re.findall(r"answer (\[.*\])", self.text())]


MakeStep = Callable[..., Step]


@pytest.fixture
def step(cluster: Cluster, shared: Path) -> Iterator[MakeStep]:
    made: list[Step] = []

    def make(
        start: tuple[str, ...] = MPIRUN,
        *,
        variant: str = "A",
        tp: int = 2,
        pp: int = 1,
        ep: int = 1,
        code: int = 0,
        prompts: tuple[str, ...] = ("one", "two"),
        **how: Any,
    ) -> Step:
        model = write_checkpoint(shared / "model", **how)
        llm = {
            "model": str(model),
            "tensor_parallel_size": tp,
            "pipeline_parallel_size": pp,
            "moe_expert_parallel_size": ep,
            "gpus_per_node": 2,
        }
        told = shared / "told.json"
        told.write_text(json.dumps({"llm": llm, "prompts": prompts}))
        script = [LAUNCH_SCRIPTS[variant]] if variant else []
        words: list[str | Path] = [*start, *script, "python", TASK, told, str(code)]
        made.append(Step(cluster, shared, words))
        return made[-1]

    yield make
    for used in made:
        used.end()


def test_the_launch_script_starts_ranks_that_answer_and_end(step: MakeStep) -> None:
    used = step()
    assert used.code() == 0, used.text()
    assert used.answers() == [["one", "stop"], ["two", "stop"]]
    text = used.text()
    assert "rank 0 using MpiCommSession to bind to external MPI processes" in text
    assert "worker rank1 quited" in text
    assert text.count("TensorRT-LLM version: 1.2.1") == 4  # two ranks, the task, the stop
    of_rank_0 = re.sub(r".*\[RANK 1\].*\n", "", text)
    places = [of_rank_0.index(landmark) for landmark in LANDMARKS]
    assert places == sorted(places)


def test_ranks_of_two_nodes_sit_where_mapping_has_them(step: MakeStep) -> None:
    used = step(SRUN, tp=2, pp=2, ep=2)
    assert used.code() == 0, used.text()
    assert used.answers() == [["one", "stop"], ["two", "stop"]]
    pattern = r"stand-in rank (\d) of 4 tp (\d) pp (\d) ep (\d) is (\S+) GPU"
    found = re.findall(pattern, used.text())
    hosts = {rank: host for rank, *_, host in found}
    assert sorted("".join(place[:4]) for place in found) == ["0000", "1101", "2010", "3111"]
    assert hosts["0"] == hosts["1"] != hosts["2"] == hosts["3"]


def test_ranks_dealt_out_like_cards_are_not_taken(step: MakeStep) -> None:
    used = step((*SRUN, "--distribution=cyclic"), tp=2, pp=2)
    used.until(r"Failed to initialize executor on rank \d: (stand-in: rank|Duplicate GPU)")


@pytest.mark.parametrize("start", [None, SRUN], ids=["mpirun", "srun"])
def test_after_a_task_that_fails_the_launch_script_waits_for_ever(
    start: tuple[str, ...] | None, step: MakeStep
) -> None:
    used = step(start, tp=2, pp=2, code=3) if start else step(code=3)
    used.until("the task is over")
    assert used.hangs()
    assert "quited" not in used.text()


def test_the_other_launch_script_waits_for_ever_after_any_task(step: MakeStep) -> None:
    used = step(variant="B")
    used.until("the task is over")
    assert used.hangs()
    assert used.answers() == [["one", "stop"], ["two", "stop"]]


def test_a_leader_may_not_stop(step: MakeStep) -> None:
    used = step(leader="deaf")
    used.until("the task is over")
    assert used.hangs()


def test_a_rank_that_raises_says_so_itself_and_all_wait(step: MakeStep) -> None:
    used = step(fault={"what": "raise", "rank": 1, "when": 0, "text": "broken"})
    used.until(r"MpiCommSession rank1 task \[.*worker_main.*\] failed with exception: broken")
    assert used.hangs()
    assert "quited" not in used.text()


def test_a_rank_that_fails_in_its_start_leaves_the_others_waiting(step: MakeStep) -> None:
    used = step(fault={"what": "oom", "rank": 1, "when": "Model"})
    used.until("Failed to initialize executor on rank 1: Executor creation failed due to")
    assert used.hangs()
    assert "Executor worker returned error" not in used.text()


@pytest.mark.parametrize("stage", ["Model", "KV cache"])
def test_a_lack_of_memory_in_all_ranks_comes_back(stage: str, step: MakeStep) -> None:
    used = step(fault={"what": "oom", "when": stage})
    used.until("RuntimeError: Executor worker returned error")
    assert "Executor creation failed due to insufficient GPU memory." in used.text()
    assert f"The following component could not be created: {stage}\n" in used.text()


@pytest.mark.parametrize("what", ["exit", "kill"])
def test_a_rank_whose_process_is_gone_ends_the_step(what: str, step: MakeStep) -> None:
    used = step(fault={"what": what, "rank": 1, "when": 0})
    assert used.code() != 0
    assert not used.answers()


def test_a_dead_engine_is_told_to_the_task(step: MakeStep) -> None:
    used = step(
        prompts=("one", "wait"), fault={"what": "die", "rank": 0, "when": 1, "text": "broken"}
    )
    used.until("RuntimeError: Remote MPI worker died: RuntimeError: broken")


def test_one_rank_too_many_is_named_and_one_too_few_is_waited_for(step: MakeStep) -> None:
    used = step((*MPIRUN[:-1], "3"))
    used.until("Rank should be an integer between 0 and 1, but got 2")
    used.end()
    used = step(pp=2)
    used.until("bind to external MPI processes")
    assert used.hangs()
    assert "Prefetching" not in used.text()


def test_without_a_launch_script_one_rank_is_spawned(step: MakeStep) -> None:
    """And with one it is not, nor with the variable that keeps it in the task's process."""
    used = step(("env",), variant="", tp=1)
    used.until("rank 0 using MpiPoolSession to spawn MPI processes")
    used.end()
    used = step(("env", "TLLM_WORKER_USE_SINGLE_PROCESS=1"), variant="", tp=1)
    assert used.code() == 0
    assert "spawn" not in used.text()
    used = step((*_ALONE, "mpirun", "-x", "CUDA_VISIBLE_DEVICES=0", "-np", "1"), tp=1)
    used.until("bind to external MPI processes")


def test_srun_cannot_spawn(step: MakeStep) -> None:
    used = step(("srun", "--mpi=pmix", "-n1", "--gres=gpu:1", "--time=2"), variant="", tp=1)
    used.until("rank 0 using MpiPoolSession to spawn MPI processes")
    used.until(r"Exception in thread Thread-\d+ \(_manager_spawn\)")
    assert used.hangs()


def test_a_leader_does_not_listen_to_who_has_another_key(cluster: Cluster, shared: Path) -> None:
    module = "tensorrt_llm.llmapi.mgmn_leader_node"
    address = "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR=tcp://127.0.0.1:10998"
    key = "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY="
    words = ["TLLM_SPAWN_PROXY_PROCESS=1", "tllm_mpi_size=1", "python", "-m", module]
    leader = Step(cluster, shared, ["env", address, f"{key}{'1' * 64}", *words])
    (shared / "other").mkdir()
    other = ["env", address, f"{key}{'2' * 64}", "python", "-m", module, "--action", "stop"]
    stop = Step(cluster, shared / "other", other)
    assert stop.code() == 0, stop.text()
    leader.until("RuntimeError: HMAC verification failed")
    leader.end()


def test_a_stop_that_no_leader_hears_waits_for_ever(cluster: Cluster, shared: Path) -> None:
    module = "tensorrt_llm.llmapi.mgmn_leader_node"
    address = "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR=tcp://127.0.0.1:10999"
    used = Step(cluster, shared, ["env", address, "python", "-m", module, "--action", "stop"])
    used.until("version")
    before = time.monotonic()
    assert used.hangs()
    assert time.monotonic() - before >= HANGS_S
    used.end()
