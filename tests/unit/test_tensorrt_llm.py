"""The engine tensorrt-llm over its stand-in, one rank in this process."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from run_making import make_plan
from trtllm_standin import STANDINS, write_checkpoint

from launcher.engines import tensorrt_llm, tensorrt_llm_start
from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.registry import create
from launcher.engines.tensorrt_llm import TensorRtLlmEngine
from launcher.errors import RowError, RunError
from launcher.plan.types import Cut, Sampling
from launcher.process import adopt_orphans, descendants
from launcher.render.tensorrt_llm import engine_file

T = TypeVar("T")
GREEDY = Sampling(max_tokens=48)
OTHERS: set[tuple[int, int]] = set()
OF_LEADERS = ("TLLM_SPAWN_PROXY_PROCESS", "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR", "tllm_mpi_size")
OWN = ("TLLM_WORKER_USE_SINGLE_PROCESS", "HF_HUB_OFFLINE", "TRTLLM_NO_USAGE_STATS")
LOG_LEVEL = "TLLM_LOG_LEVEL"
ARGS = "tensorrt_llm.llmapi.llm_args"


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ``import tensorrt_llm`` finds, and an environment as nobody has set it."""
    for name in (*OWN, *OF_LEADERS, LOG_LEVEL):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(STANDINS)
    monkeypatch.setattr(tensorrt_llm, "LAST_WORDS_S", 0.1)
    monkeypatch.setattr(tensorrt_llm, "WHOSE_S", 0.1)
    monkeypatch.setattr(tensorrt_llm, "STATISTICS_S", 0.1)
    monkeypatch.setattr(tensorrt_llm, "_BETWEEN_S", 0.01)
    OTHERS.update(descendants())
    yield
    OTHERS.clear()
    adopt_orphans(adopt=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


def setup(model: Path, cut: Cut | None = None, **options: Any) -> EngineSetup:
    """With the file of arguments that is rendered for one rank, beside the checkpoint."""
    plan = make_plan(
        engine="tensorrt-llm", model=str(model), model_path=str(model), engine_options=options
    )
    path = model / "engine.yaml"
    path.write_text(engine_file(plan))
    return EngineSetup(model_path=str(model), cut=cut or Cut(), options=options, arguments=path)


def text(prompt: str, sampling: Sampling = GREEDY, key: str = "0:0") -> Request:
    return Request(id=key, text=prompt, sampling=sampling)


def tokens(*ids: int) -> Request:
    return Request(id="0:0", tokens=ids, sampling=GREEDY)


async def using(
    given: EngineSetup, work: Callable[[TensorRtLlmEngine, Capabilities], Awaitable[T]]
) -> T:
    engine = create("tensorrt-llm", given)
    assert isinstance(engine, TensorRtLlmEngine)
    try:
        return await work(engine, await engine.start())
    finally:
        await engine.close()


def answered(given: EngineSetup, *requests: Request) -> list[Completion]:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> list[Completion]:
        return list(await asyncio.gather(*map(engine.generate, requests)))

    return asyncio.run(using(given, work))


def row_error(given: EngineSetup, request: Request) -> tuple[str, str]:
    with pytest.raises(RowError) as err:
        answered(given, request)
    return err.value.code, err.value.message


def start_problem(given: EngineSetup) -> tuple[str, str, str | None]:
    with pytest.raises(RunError) as err:
        answered(given)
    [problem] = err.value.problems
    return problem.code, problem.message, problem.hint


def asked(monkeypatch: pytest.MonkeyPatch, given: EngineSetup, sampling: Sampling) -> Any:
    """The parameters that a request with ``sampling`` goes to TensorRT-LLM with."""
    seen = []

    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> None:
        llm = engine._alive().llm
        generate = llm.generate_async

        def noting(inputs: Any, params: Any) -> Any:
            seen.append((inputs, params))
            return generate(inputs, params)

        monkeypatch.setattr(llm, "generate_async", noting)
        await engine.generate(text("abc", sampling))

    asyncio.run(using(given, work))
    [(inputs, params)] = seen
    assert inputs == [256, 97, 98, 99]  # token ids, whatever the row has
    return params


def test_a_prompt_is_answered_with_text_and_counts(tmp_path: Path) -> None:
    [found] = answered(setup(write_checkpoint(tmp_path)), text("hello"))
    assert found == Completion(
        text="hello", finish_reason="stop", prompt_tokens=6, completion_tokens=6
    )


def test_it_tells_what_it_can(tmp_path: Path) -> None:
    async def work(_: TensorRtLlmEngine, found: Capabilities) -> Capabilities:
        return found

    found = asyncio.run(
        using(setup(write_checkpoint(tmp_path, kv_tokens=4096), max_batch_size=7), work)
    )
    assert found == Capabilities(
        max_in_flight=7,
        chat_template=True,
        max_seq_len=64,
        queues=True,
        kv_tokens=4096,
        version="1.2.1",
        replaceable=False,
    )


def test_a_small_kv_cache_makes_the_longest_sequence_shorter(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path, kv_tokens=32))
    code, message = row_error(given, text("x" * 40))
    assert code == "prompt_too_long"
    assert "the model takes 31" in message


def test_figures_of_several_ranks_are_what_their_wrapper_has_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard"
    heard.write_text('{"max_seq_len": 32')
    monkeypatch.setenv("HPC_LLM_FIGURES", str(heard))
    writer = threading.Timer(0.2, heard.write_text, ['{"max_seq_len": 32, "kv_tokens": 480}'])
    writer.start()
    assert tensorrt_llm_start._figures_of_leader() == {"max_seq_len": 32, "kv_tokens": 480}


def test_a_wrapper_that_has_heard_nothing_holds_up_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_llm_start, "HEARD_S", 0.1)
    monkeypatch.setenv("HPC_LLM_FIGURES", str(tmp_path / "none"))
    assert tensorrt_llm_start._figures_of_leader() == {}


def test_figures_of_the_small_kv_cache_that_is_tried_first_are_not_the_engines() -> None:
    lines = [
        "[TRT-LLM] [W] Adjusted max_seq_len to 8",
        "[MemUsageChange] Allocated 0.1 GiB for max tokens in paged KV cache (96).",
        "[TRT-LLM] [I] Estimated max memory in KV cache : 55.74 GiB",
        "[MemUsageChange] Allocated 55.7 GiB for max tokens in paged KV cache (9000).",
    ]
    assert tensorrt_llm_start._figures(lines) == {"kv_tokens": 9000}


def test_turns_go_through_the_chat_template(tmp_path: Path) -> None:
    request = Request(id="0:0", messages=({"role": "user", "content": "hi"},), sampling=GREEDY)
    [found] = answered(setup(write_checkpoint(tmp_path)), request)
    assert found.text == "<user>hi<assistant>"


def test_turns_that_the_template_refuses_are_the_rows_error(tmp_path: Path) -> None:
    request = Request(id="0:0", messages=({"role": "ghost", "content": ""},), sampling=GREEDY)
    assert row_error(setup(write_checkpoint(tmp_path)), request)[0] == "template_error"


def test_token_ids_are_sent_as_they_are(tmp_path: Path) -> None:
    [found] = answered(setup(write_checkpoint(tmp_path)), tokens(104, 105))
    assert (found.text, found.prompt_tokens) == ("hi", 2)


def test_an_answer_that_is_cut_says_so(tmp_path: Path) -> None:
    [found] = answered(setup(write_checkpoint(tmp_path)), text("hello", Sampling(max_tokens=2)))
    assert (found.text, found.finish_reason, found.completion_tokens) == ("he", "length", 2)


def test_a_stop_text_ends_the_answer(tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=48, stop=("lo",))
    [found] = answered(setup(write_checkpoint(tmp_path)), text("hello", sampling))
    assert (found.text, found.finish_reason) == ("hel", "stop")


def test_greedy_is_said_in_the_way_that_every_version_understands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = asked(monkeypatch, setup(write_checkpoint(tmp_path)), Sampling(max_tokens=5, seed=7))
    assert (params.max_tokens, params.top_k, params.seed) == (5, 1, 7)
    assert (params.temperature, params.top_p, params.stop) == (None, None, None)


def test_log_probabilities_come_with_the_likeliest_tokens_in_order(tmp_path: Path) -> None:
    asked = [text("hi", Sampling(max_tokens=2, logprobs=n), key=f"0:{n}") for n in (0, 2)]
    none, two = answered(setup(write_checkpoint(tmp_path)), *asked)
    assert json.loads(none.logprobs or "") == [
        {"token": "h", "logprob": -0.25, "bytes": [104], "top_logprobs": []},
        {"token": "i", "logprob": -0.25, "bytes": [105], "top_logprobs": []},
    ]
    told = json.loads(two.logprobs or "")
    assert [[o["token"] for o in e["top_logprobs"]] for e in told] == [["h", "i"], ["i", "j"]]
    (plain,) = answered(setup(write_checkpoint(tmp_path / "plain")), text("hi"))
    assert plain.logprobs is None


def test_those_of_a_stop_text_are_not_told(tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=48, stop=("lo",), logprobs=1)
    [found] = answered(setup(write_checkpoint(tmp_path)), text("hello", sampling))
    told = json.loads(found.logprobs or "")
    assert "".join(each["token"] for each in told) == found.text == "hel"


def test_no_likely_tokens_are_asked_for_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = setup(write_checkpoint(tmp_path))
    assert asked(monkeypatch, model, Sampling(max_tokens=5, logprobs=0)).logprobs == 1


def test_sampling_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(
        max_tokens=9, temperature=0.7, top_p=0.9, top_k=40, seed=2**63 + 5, stop=("x",)
    )
    params = asked(monkeypatch, setup(write_checkpoint(tmp_path)), sampling)
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (9, 0.7, 0.9, 40)
    assert (params.seed, params.stop) == (5, ["x"])


def test_an_answer_never_goes_beyond_the_longest_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setup(write_checkpoint(tmp_path), max_seq_len=10)
    assert asked(monkeypatch, given, Sampling(max_tokens=50)).max_tokens == 6


def test_without_a_tokenizer_the_parameters_say_what_ends_an_answer(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": [257, 7]}))
    given = setup(model, skip_tokenizer_init=True)
    [found] = answered(given, tokens(104, 105))
    assert (found.text, found.finish_reason, found.completion_tokens) == ("", "stop", 3)
    assert row_error(given, text("hi"))[0] == "request_rejected"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (tokens(), "empty_prompt"),
        (text("x" * 64), "prompt_too_long"),
        (tokens(300), "request_rejected"),  # outside the vocabulary
        (text("fail"), "request_rejected"),  # a RequestError of the engine
        (text("late"), "engine_error"),  # it ended as `timeout`
    ],
)
def test_a_row_that_cannot_be_answered_is_an_error_of_its_own(
    tmp_path: Path, request_: Request, code: str
) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> tuple[str, str]:
        with pytest.raises(RowError) as err:
            await engine.generate(request_)
        return err.value.code, (await engine.generate(text("next"))).text

    given = setup(write_checkpoint(tmp_path))
    assert asyncio.run(using(given, work)) == (code, "next")


def test_a_prompt_longer_than_a_step_is_too_long_where_it_is_not_cut(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path), max_num_tokens=8, enable_chunked_prefill=False)
    code, message = row_error(given, text("x" * 20))
    assert code == "prompt_too_long"
    assert "should not exceed max_num_tokens (8)" in message


@pytest.mark.parametrize("wrong", [ValueError("no"), TypeError("no")])
def test_what_is_refused_as_it_is_handed_over_is_the_rows_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Exception
) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> str:
        def refuse(*_: Any) -> Any:
            raise wrong

        monkeypatch.setattr(engine._alive().llm, "generate_async", refuse)
        with pytest.raises(RowError) as err:
            await engine.generate(text("hi"))
        return err.value.code

    assert asyncio.run(using(setup(write_checkpoint(tmp_path)), work)) == "request_rejected"


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_an_engine_that_died_of_any_error_refuses_no_row(tmp_path: Path, kind: type) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> list[Any]:
        engine._alive().llm._executor._error = kind("a thread of the executor is gone")
        asking = (engine.generate(text("hi", key=f"0:{n}")) for n in (1, 2))
        return list(await asyncio.gather(*asking, return_exceptions=True))

    found = asyncio.run(using(setup(write_checkpoint(tmp_path)), work))
    assert [type(each) for each in found] == [RunError, RunError]
    assert "a thread of the executor is gone" in found[0].problems[0].message


def test_a_request_can_be_given_up_while_it_is_answered(tmp_path: Path) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> tuple[str, str]:
        waiting = asyncio.ensure_future(engine.generate(text("wait", key="0:1")))
        await engine.generate(text("other", key="0:2"))
        await engine.abort("0:1")
        with pytest.raises(RowError) as err:
            await waiting
        return err.value.code, (await engine.generate(text("next"))).text

    assert asyncio.run(using(setup(write_checkpoint(tmp_path)), work)) == ("cancelled", "next")


def test_who_waits_no_longer_takes_the_request_back(tmp_path: Path) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> str:
        waiting = asyncio.ensure_future(engine.generate(text("wait", key="0:1")))
        await engine.generate(text("other", key="0:2"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await engine.generate(text("next"))).text  # the only place of a step is free

    given = setup(write_checkpoint(tmp_path), max_batch_size=2)
    assert asyncio.run(using(given, work)) == "next"


def test_figures_are_read_while_answers_are_made(tmp_path: Path) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> dict[str, float]:
        assert engine.stats() == {}  # nothing that would stand still
        await asyncio.gather(*(engine.generate(text("hello", key=f"0:{i}")) for i in range(3)))
        waiting = asyncio.ensure_future(engine.generate(text("wait", key="0:9")))
        while engine.stats().get("running") != 1:
            await engine.generate(text("hello"))
            await asyncio.sleep(0.02)
        waiting.cancel()
        return dict(engine.stats())

    found = asyncio.run(using(setup(write_checkpoint(tmp_path)), work))
    assert found.keys() == {
        "running",
        "queued",
        "kv_cache_usage",
        "iterations",
        "generated_tokens",
    }
    assert found["iterations"] > 0
    assert found["generated_tokens"] >= 18


@pytest.mark.parametrize(
    ("entry", "figures"),
    [
        ({"iter": 4}, {"iterations": 4}),
        ('{"iter": 4, "numActiveRequests": 3}', {"iterations": 4, "running": 3}),
        (
            {
                "numActiveRequests": 5,
                "numQueuedRequests": 2,
                "inflightBatchingStats": {"numScheduledRequests": 4},
                "kvCacheStats": {"maxNumBlocks": 10, "usedNumBlocks": 5},
            },
            {"iterations": 1, "running": 4, "queued": 3, "kv_cache_usage": 0.5},
        ),
        ({"kvCacheStats": None, "inflightBatchingStats": None}, {"iterations": 1}),
        ({"kvCacheStats": {"maxNumBlocks": 0, "usedNumBlocks": 0}}, {"iterations": 1}),
    ],
)
def test_statistics_with_missing_keys_say_what_they_say(
    entry: Any, figures: dict[str, float]
) -> None:
    counted = tensorrt_llm._Counted()
    counted.record(entry)
    assert counted.figures() == {**figures, "generated_tokens": 0}


def test_statistics_that_fail_end_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> tuple[str, dict[str, float]]:
        def fail(*_: Any) -> Any:
            raise NotImplementedError("aget_stats is not implemented")

        monkeypatch.setattr(engine._alive().llm, "get_stats_async", fail)
        first = await engine.generate(text("one"))
        assert engine._statistics is not None
        await engine._statistics
        return first.text + (await engine.generate(text("two"))).text, dict(engine.stats())

    assert asyncio.run(using(setup(write_checkpoint(tmp_path)), work)) == ("onetwo", {})


def test_a_death_is_the_same_for_all_in_flight_and_all_after(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, fault={"what": "die", "when": 2, "text": "gone wrong"})

    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> list[Any]:
        waiting = asyncio.ensure_future(engine.generate(text("wait", key="0:1")))
        for key in ("0:2", "0:3", "0:4"):
            await asyncio.gather(engine.generate(text("x", key=key)), return_exceptions=True)
        later = engine.generate(text("late", key="0:5"))
        return list(await asyncio.gather(waiting, later, return_exceptions=True))

    found = asyncio.run(using(setup(model), work))
    assert all(isinstance(each, RunError) for each in found)
    assert {p.code for each in found for p in each.problems} == {"engine.died"}
    assert len({p.message for each in found for p in each.problems}) == 1


def test_a_pass_that_fails_is_the_engines_death_and_no_row_is_to_blame(tmp_path: Path) -> None:
    fault = {"what": "forward", "when": 2, "text": "CUDA error: an illegal memory access"}

    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> list[Any]:
        active = [
            asyncio.ensure_future(engine.generate(text("wait", key=f"0:{n}"))) for n in (1, 2)
        ]
        done = [await engine.generate(text("x", key=f"0:{n}")) for n in (3, 4)]
        assert [each.text for each in done] == ["x", "x"]
        return list(await asyncio.gather(*active, return_exceptions=True))

    found = asyncio.run(using(setup(write_checkpoint(tmp_path, fault=fault)), work))
    assert all(isinstance(each, RunError) for each in found)
    assert {p.code for each in found for p in each.problems} == {"engine.died"}
    assert "illegal memory access" in found[0].problems[0].message


def test_one_rank_is_told_to_work_in_this_process_and_of_no_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OF_LEADERS:
        monkeypatch.setenv(name, "1")
    answered(setup(write_checkpoint(tmp_path)), text("hi"))
    assert {name: os.environ.get(name) for name in (*OWN, *OF_LEADERS)} == {
        **dict.fromkeys(OWN, "1"),
        **dict.fromkeys(OF_LEADERS),
    }


def test_several_ranks_without_a_leader_are_never_started(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path), Cut(tp=2))
    code, message, _ = start_problem(given)
    assert code == "run.world-mismatch"
    assert "2 ranks" in message


def test_names_are_held_against_the_version_that_is_there(tmp_path: Path) -> None:
    code, message, hint = start_problem(setup(write_checkpoint(tmp_path), max_batch_sise=4))
    assert code == "engine.options"
    assert "max_batch_sise" in message
    assert hint == "write max_batch_size"


def given_to_llm(monkeypatch: pytest.MonkeyPatch, given: EngineSetup) -> dict[str, Any]:
    """The arguments with which the stand-in's ``LLM`` is made."""
    seen: dict[str, Any] = {}

    def noting(**arguments: Any) -> Any:
        seen.update(arguments)
        raise RuntimeError("seen")

    monkeypatch.setattr(importlib.import_module("tensorrt_llm"), "LLM", noting)
    start_problem(given)
    return seen


def test_its_arguments_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setup(write_checkpoint(tmp_path), max_seq_len=48)
    assert given.arguments is not None
    assert given_to_llm(monkeypatch, given) == json.loads(given.arguments.read_text())


def test_a_version_that_has_to_be_told_of_a_sampler_is_told_unless_the_job_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.import_module(ARGS).TorchLlmArgs
    samplers = dict.fromkeys(("enable_mixed_sampler", "enable_trtllm_sampler"), False)  # as in 1.0
    monkeypatch.setattr(known, "model_fields", known.model_fields | samplers)
    model = write_checkpoint(tmp_path)
    assert given_to_llm(monkeypatch, setup(model))["enable_trtllm_sampler"] is True
    found = given_to_llm(monkeypatch, setup(model, enable_mixed_sampler=True))
    assert "enable_trtllm_sampler" not in found


def test_a_configuration_of_several_classes_is_made_as_for_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(from_dict=lambda config: ("made of", config))
    monkeypatch.setattr(f"{ARGS}.DecodingBaseConfig", made, raising=False)
    config = {"decoding_type": "NGram", "max_draft_len": 3}
    given = setup(write_checkpoint(tmp_path), speculative_config=config)
    assert given_to_llm(monkeypatch, given)["speculative_config"] == ("made of", config)


def test_options_within_options_are_refused_with_its_words(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path), kv_cache_config={"fraction": 0.5})
    code, message, _ = start_problem(given)
    assert code == "engine.options"
    assert "kv_cache_config.fraction" in message
    assert "Extra inputs are not permitted" in message
    assert "pydantic.dev" not in message


def test_a_missing_checkpoint_is_told_before_anything_is_imported(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path))
    (tmp_path / "config.json").unlink()
    code, message, _ = start_problem(given)
    assert code == "engine.model"
    assert str(tmp_path) in message
    assert "tensorrt_llm" not in sys.modules


def test_a_missing_file_of_arguments_is_told(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path))
    (tmp_path / "engine.yaml").unlink()
    assert start_problem(given)[0] == "engine.options"


def test_too_little_memory_is_told_with_what_to_do(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, fault={"what": "oom", "when": "Model"})
    code, message, hint = start_problem(setup(model))
    assert code == "engine.no-memory"
    assert "memory" in message
    assert hint is not None
    assert "parallelism.tp" in hint


def test_a_start_that_fails_otherwise_is_told_in_its_words(tmp_path: Path) -> None:
    fault = {"what": "raise", "when": "Model", "text": "the weights are strange"}
    code, message, _ = start_problem(setup(write_checkpoint(tmp_path, fault=fault)))
    assert code == "engine.model"
    assert "the weights are strange" in message


def test_without_the_library_the_hint_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    given = setup(write_checkpoint(tmp_path))
    code, message, _ = start_problem(given)
    assert code == "engine.import"
    assert "tensorrt_llm" in message
    del sys.modules["tensorrt_llm"]


def test_a_shutdown_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []
    monkeypatch.setattr("launcher.engines.library.CLOSE_S", 0.1)
    monkeypatch.setattr(tensorrt_llm, "_end_within", ended.append)
    release = asyncio.Event()

    async def work(engine: TensorRtLlmEngine, _: Capabilities) -> None:
        loop = asyncio.get_running_loop()

        def hang() -> None:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

        monkeypatch.setattr(engine._alive().llm, "shutdown", hang)

    async def closing() -> None:
        await using(setup(write_checkpoint(tmp_path)), work)
        release.set()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(closing(), 10))
    assert ended == [tensorrt_llm.HELD_UP_S]


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    answered(setup(write_checkpoint(tmp_path)), text("hi"))
    assert descendants() - OTHERS == frozenset()
