"""What a rank's wrapper makes of lines and of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.runner.watch import Fault, Watch, deadlines_s

LIMITS_S = {"mpi": 10.0, "load": 20.0}
RAISED = "\x1b[31mMpiCommSession rank1 task [<f at 0x7f>] failed with exception: boom\x1b[0m"
ECHO = "RuntimeError: Executor worker returned error"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Watch:
    return Watch("rank 1 on node01", several=True, limits_s=LIMITS_S, clock=clock)


def told(fault: Fault | None) -> tuple[str, str]:
    assert fault is not None
    return fault.problem.code, fault.problem.message


def test_nothing_is_wrong_at_first(watch: Watch) -> None:
    watch.hear("Loading weights:  50%")
    assert watch.fault() is None
    assert (watch.phase, watch.last) == ("load", "Loading weights:  50%")


def test_a_fatal_line_is_followed_for_a_moment_by_what_explains_it(
    watch: Watch, clock: Clock
) -> None:
    watch.hear(RAISED)
    assert watch.fault() is None
    watch.hear("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
    clock.now_s += 1.0
    code, message = told(watch.fault())
    assert code == "engine.no-memory"
    assert message.startswith("rank 1 on node01: torch.OutOfMemoryError")


def test_what_was_said_before_the_fatal_line_may_be_its_cause(watch: Watch, clock: Clock) -> None:
    watch.hear("ValueError: Unknown architecture for AutoModelForCausalLM: Foo")
    watch.hear(RAISED)
    clock.now_s += 1.0
    assert told(watch.fault())[0] == "engine.model"


def test_an_echo_is_marked_as_one(watch: Watch, clock: Clock) -> None:
    watch.hear(ECHO)
    clock.now_s += 9.9
    assert watch.fault() is None
    clock.now_s += 0.1
    fault = watch.fault()
    assert fault is not None
    assert fault.echo
    assert told(fault) == ("engine.died", f"rank 1 on node01: {ECHO}")


def test_an_abort_is_taken_at_its_word_at_once(watch: Watch) -> None:
    watch.hear(RAISED)
    watch.hear("MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD")
    fault = watch.fault()
    assert fault is not None
    assert not fault.echo
    assert told(fault) == ("engine.died", "rank 1 on node01: boom")


def test_a_phase_that_takes_too_long_is_named_with_the_last_line(
    watch: Watch, clock: Clock
) -> None:
    watch.hear("[TensorRT-LLM][INFO] Initializing MPI with thread mode 3")
    clock.now_s += 10.1
    code, message = told(watch.fault())
    assert code == "run.stalled"
    assert "phase mpi, 10 s at most" in message
    assert message.endswith("Initializing MPI with thread mode 3")


def test_each_phase_has_its_own_time(watch: Watch, clock: Clock) -> None:
    clock.now_s += 9.0
    watch.hear("Prefetching 15.00GB checkpoint files.")
    clock.now_s += 19.0
    assert watch.fault() is None
    clock.now_s += 2.0
    assert "to load the weights" in told(watch.fault())[1]


def test_what_still_prints_has_the_time_of_all_phases(watch: Watch, clock: Clock) -> None:
    for _ in range(6):
        clock.now_s += 5.0
        watch.hear("some progress")
        assert watch.fault() is None
    clock.now_s += 1.0
    assert told(watch.fault())[0] == "run.stalled"


def test_once_ready_it_may_be_silent(watch: Watch, clock: Clock) -> None:
    watch.hear("[04:21:58] replica 0: engine tensorrt-llm is ready after 112.0 s, window 64")
    clock.now_s += 10**6
    assert watch.fault() is None


def test_figures_are_those_of_the_real_cache(watch: Watch) -> None:
    watch.hear("[TRT-LLM] [W] Adjusted max_seq_len to 8224")
    watch.hear("for max tokens in paged KV cache (8224).")
    watch.hear("[TRT-LLM] [I] Estimated max memory in KV cache : 5.95 GiB")
    assert watch.figures == {}
    watch.hear("for max tokens in paged KV cache (86720).")
    assert watch.figures == {"kv_tokens": 86720}


def test_what_was_survived_explains_no_later_death(watch: Watch) -> None:
    watch.hear("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
    watch.hear("*** An error occurred in MPI_Recv")
    watch.hear("[04:21:58] replica 0: engine tensorrt-llm is ready after 112.0 s, window 64")
    fault = watch.death("its leader was killed by SIGKILL", killed=True)
    assert told(fault) == ("run.died", "rank 1 on node01: its leader was killed by SIGKILL")
    assert not fault.echo


def test_a_death_by_signal_is_not_explained_by_an_exception_that_was_caught(watch: Watch) -> None:
    watch.hear("ImportError: no flash_attn")
    fault = watch.death("its worker was killed by SIGKILL", killed=True)
    assert told(fault) == ("run.died", "rank 1 on node01: its worker was killed by SIGKILL")
    assert not fault.echo
    assert told(watch.death("its worker exited with 1", killed=False))[0] == "engine.died"


def test_a_death_after_an_echo_may_be_one(watch: Watch) -> None:
    watch.hear("*** An error occurred in MPI_Recv")
    assert watch.death("its worker exited with 15", killed=False).echo


def test_loading_has_more_time_for_a_larger_model(tmp_path: Path) -> None:
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(100 << 30)
    small, large = deadlines_s(None), deadlines_s(str(tmp_path))
    assert large["load"] - small["load"] == pytest.approx(1200.0)
    assert deadlines_s(None, patience=2.0)["mpi"] == 2 * small["mpi"]


def test_figures_of_the_small_kv_cache_are_nobodys(watch: Watch) -> None:
    watch.hear("for max tokens in paged KV cache (96).")
    assert watch.settled_figures() == {}
    watch.hear("Estimated max memory in KV cache : 55.74 GiB")
    assert watch.settled_figures() == {}
    watch.hear("for max tokens in paged KV cache (9000).")
    assert watch.settled_figures() == {"kv_tokens": 9000}
