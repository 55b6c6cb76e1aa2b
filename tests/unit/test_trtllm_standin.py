"""The stand-in for TensorRT-LLM with one rank, in this process."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trtllm_standin import STAGES, STANDINS, write_checkpoint

Make = Callable[..., Any]


@pytest.fixture
def trtllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, as the environment of a worker in the same process has it."""
    monkeypatch.syspath_prepend(STANDINS)
    monkeypatch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
    monkeypatch.setenv("TLLM_LOG_LEVEL", "INFO")
    monkeypatch.delenv("TLLM_SPAWN_PROXY_PROCESS", raising=False)
    yield importlib.import_module("tensorrt_llm")
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


@pytest.fixture
def make(trtllm: Any, tmp_path: Path) -> Iterator[Make]:
    made = []

    def engine(args: dict[str, Any] | None = None, **how: Any) -> Any:
        made.append(trtllm.LLM(model=str(write_checkpoint(tmp_path / "m", **how)), **(args or {})))
        return made[-1]

    yield engine
    for each in made:
        each.shutdown()


def params(**given: Any) -> Any:
    return sys.modules["tensorrt_llm"].SamplingParams(**given)


def request_error() -> type[Exception]:
    error: type[Exception] = importlib.import_module("tensorrt_llm.executor.utils").RequestError
    return error


def test_an_answer_is_its_prompt_and_says_why_it_ended(make: Make) -> None:
    llm = make()
    whole, cut = llm.generate(["hello", "a longer one"], params(max_tokens=6))
    assert (whole.outputs[0].text, whole.outputs[0].finish_reason) == ("hello", "stop")
    assert (cut.outputs[0].text, cut.outputs[0].finish_reason) == ("a long", "length")
    assert whole.prompt == "hello"
    assert cut.outputs[0].token_ids == list(b"a long")


def test_a_list_of_ids_is_a_prompt(make: Make) -> None:
    found = make().generate([104, 105], params(max_tokens=9))
    assert (found.outputs[0].text, found.prompt) == ("hi", None)


def test_nothing_said_is_32_tokens(make: Make) -> None:
    assert params().max_tokens == 32
    assert len(make({"max_seq_len": 99}).generate("x" * 50).outputs[0].token_ids) == 32


def test_a_stop_word_is_named_and_left_out(make: Make) -> None:
    [output] = make().generate("one two three", params(stop=["two"])).outputs
    assert (output.text, output.finish_reason, output.stop_reason) == ("one ", "stop", "two")


def test_a_seed_gives_the_same_answer_again_and_another_one_another(make: Make) -> None:
    llm, prompt = make(), "the same words"
    first, again, other = (
        llm.generate(prompt, params(seed=seed, temperature=1.0)).outputs[0].text
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert sorted(first) == sorted(prompt)


def test_logprobs_are_one_dictionary_a_token(make: Make) -> None:
    [output] = make().generate("ab", params(logprobs=2)).outputs
    assert [len(each) for each in output.logprobs] == [2] * len(output.token_ids)
    assert output.logprobs[0][ord("a")].rank == 1
    assert output.cumulative_logprob == pytest.approx(-0.25 * len(output.token_ids))


def test_one_request_fails_and_the_others_do_not(make: Make) -> None:
    llm = make()

    async def ask() -> list[Any]:
        asked = [llm.generate_async(prompt, params()) for prompt in ("one", "fail", "two")]
        return await asyncio.gather(*(each.aresult() for each in asked), return_exceptions=True)

    one, wrong, two = asyncio.run(ask())
    assert isinstance(wrong, request_error())
    assert [each.outputs[0].text for each in (one, two)] == ["one", "two"]


def test_what_is_aborted_ends_as_cancelled(make: Make) -> None:
    asked = make().generate_async("wait", params())
    with pytest.raises(queue.Empty):
        asked.result(0.1)
    asked.abort()
    assert asked.result(5).outputs[0].finish_reason == "cancelled"


def test_a_prompt_beyond_the_limits_is_a_request_error(make: Make) -> None:
    llm = make({"max_num_tokens": 20})
    with pytest.raises(request_error(), match=r"should not exceed max_num_tokens \(20\)"):
        llm.generate_async([1] * 21, params())
    llm = make({"max_num_tokens": 20, "enable_chunked_prefill": True})
    with pytest.raises(request_error(), match=r"`default_max_tokens` \(0\) must be greater than 0"):
        llm.generate([1] * 64, params())


def test_an_answer_that_may_be_longer_than_there_is_room_is_warned_of(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    make().generate("hello", params(max_tokens=60))
    assert "User-specified `max_tokens` (60) is greater than deduced" in capfd.readouterr().err


def test_a_small_pool_cuts_the_length_and_says_so(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    llm = make({"kv_cache_config": {"max_tokens": 40}})
    said = capfd.readouterr().err
    assert "Attention window size 64 exceeds upper bound 32 for available blocks." in said
    assert "[W] Adjusted max_seq_len to 32\n" in said
    [output] = llm.generate("x" * 25, params(max_tokens=60)).outputs
    assert (len(output.token_ids), output.finish_reason) == (6, "length")


def test_the_pool_of_the_estimation_seems_to_cut_the_length_and_does_not(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    llm = make({"max_num_tokens": 16})
    before, estimated, after = capfd.readouterr().err.partition("Estimated max memory in KV cache")
    assert "Adjusted max_seq_len to 32\n" in before
    assert estimated
    assert "Adjusted" not in after
    assert "max_seq_len=64, " in after
    [output] = llm.generate("x" * 15, params(max_tokens=60, ignore_eos=True)).outputs
    assert len(output.token_ids) == 48


def test_landmarks_are_written_when_they_are_asked_for(
    make: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    assert "Estimated max memory in KV cache" in capfd.readouterr().err
    logger = sys.modules["tensorrt_llm.logger"].logger
    monkeypatch.delenv("TLLM_LOG_LEVEL")
    logger.__init__()
    make()
    assert "Estimated max memory in KV cache" not in capfd.readouterr().err


def test_statistics_are_there_when_they_are_asked_for(make: Make) -> None:
    llm = make({"enable_iter_perf_stats": True})

    async def ask() -> list[dict[str, Any]]:
        await llm.generate_async("one", params())
        return [each async for each in llm.get_stats_async(0.2)]

    [found] = asyncio.run(ask())
    assert found["kvCacheStats"]["tokensPerBlock"] == 32
    llm = make()
    llm.generate("one", params())
    assert llm.get_stats(0.05) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"kv_cache_free_gpu_memory_fraction": 0.5}, "LLM got invalid argument: kv_cache_free"),
        ({"kv_cache_config": {"fraction": 0.5}}, "kv_cache_config.fraction\n  Extra inputs are"),
        ({"max_batch_size": "8"}, "max_batch_size\n  Input should be a valid integer"),
        ({"quant_config": None}, r"specific to TensorRT backend .*\['quant_config'\]"),
        ({"moe_expert_parallel_size": 2}, "must equal to moe_world_size, but got 0 != 1"),
    ],
)
def test_wrong_arguments_are_refused(args: dict[str, Any], says: str, make: Make) -> None:
    with pytest.raises(ValueError, match=says):
        make(args)


@pytest.mark.parametrize("stage", STAGES)
def test_a_lack_of_memory_names_its_stage(stage: str, make: Make) -> None:
    with pytest.raises(RuntimeError, match="insufficient GPU memory") as err:
        make(fault={"what": "oom", "when": stage})
    assert f"The following component could not be created: {stage}\n" in str(err.value)


def test_a_dead_engine_fails_what_waits_and_what_comes(make: Make) -> None:
    llm = make(fault={"what": "die", "when": 1, "text": "broken"})
    waits = llm.generate_async("wait", params())
    llm.generate_async("one", params()).result(5)
    with pytest.raises(RuntimeError, match="broken"):
        waits.result(5)
    with pytest.raises(RuntimeError, match="broken"):
        llm.generate_async("two", params())


def test_a_pass_that_fails_takes_all_active_requests_and_no_other_is_answered(make: Make) -> None:
    llm = make(fault={"what": "forward", "when": 1, "text": "CUDA error"})
    active = llm.generate_async("wait", params())
    llm.generate_async("one", params()).result(5)
    with pytest.raises(request_error(), match="CUDA error"):
        active.result(5)
    with pytest.raises(queue.Empty):
        llm.generate_async("two", params()).result(0.3)


def test_more_gpus_than_there_are_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RuntimeError, match="Only 1 GPUs are available, but 2 are required"):
        make({"tensor_parallel_size": 2, "gpus_per_node": 2})


def test_a_proxy_that_sees_the_world_of_its_ranks_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_SPAWN_PROXY_PROCESS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(AssertionError, match="the proxy sees"):
        make()


def test_it_has_nothing_of_ours() -> None:
    files = list((STANDINS / "tensorrt_llm").rglob("*.py"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert len([line for line in lines if line.startswith("from .")]) > 20
    assert not [line for line in lines if "import" in line and "launcher" in line]


def test_its_fields_can_be_asked_for(trtllm: Any) -> None:
    args = importlib.import_module("tensorrt_llm.llmapi.llm_args").TorchLlmArgs
    given = set(inspect.signature(trtllm.LLM).parameters) - {"kwargs"}
    assert given <= set(args.model_fields)
    assert {"gpus_per_node", "kv_cache_config", "enable_iter_perf_stats"} <= set(args.model_fields)
