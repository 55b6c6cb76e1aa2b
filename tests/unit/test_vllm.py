"""The engine vllm over its stand-in, in this process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from vllm_standin import STANDINS, write_checkpoint

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.registry import create, follow
from launcher.engines.vllm import VllmEngine
from launcher.errors import RowError, RunError
from launcher.plan.types import Cut, Sampling
from launcher.process import adopt_orphans, descendants

T = TypeVar("T")
GREEDY = Sampling(max_tokens=48)
OTHERS: set[tuple[int, int]] = set()


def started() -> frozenset[tuple[int, int]]:
    """The live processes that came with the test."""
    return descendants() - OTHERS


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ``import vllm`` finds, and an environment as nobody has set it."""
    own = ("VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_WORKER_MULTIPROC_METHOD")
    for name in (*own, "VLLM_ENGINE_READY_TIMEOUT_S"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(STANDINS)
    OTHERS.update(descendants())
    yield
    OTHERS.clear()
    adopt_orphans(adopt=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


def setup(model: Path | None, cut: Cut | None = None, **options: Any) -> EngineSetup:
    return EngineSetup(
        model_path=None if model is None else str(model), cut=cut or Cut(), options=options
    )


def text(prompt: str, sampling: Sampling = GREEDY, key: str = "0:0") -> Request:
    return Request(id=key, text=prompt, sampling=sampling)


def tokens(*ids: int) -> Request:
    return Request(id="0:0", tokens=ids, sampling=GREEDY)


async def using(given: EngineSetup, work: Callable[[VllmEngine, Capabilities], Awaitable[T]]) -> T:
    engine = create("vllm", given)
    assert isinstance(engine, VllmEngine)
    try:
        return await work(engine, await engine.start())
    finally:
        await engine.close()


def answered(given: EngineSetup, *requests: Request) -> list[Completion]:
    async def work(engine: VllmEngine, _: Capabilities) -> list[Completion]:
        return list(await asyncio.gather(*map(engine.generate, requests)))

    return asyncio.run(using(given, work))


def row_error(given: EngineSetup, request: Request) -> tuple[str, str]:
    with pytest.raises(RowError) as err:
        answered(given, request)
    return err.value.code, err.value.message


def start_error(given: EngineSetup) -> tuple[str, str, str]:
    with pytest.raises(RunError) as err:
        answered(given)
    (problem,) = err.value.problems
    return problem.code, problem.message, problem.hint or ""


def test_text_is_sent_as_it_is_and_counted(tmp_path: Path) -> None:
    (answer,) = answered(setup(write_checkpoint(tmp_path)), text("hello"))
    assert answer == Completion(
        text="hello", finish_reason="stop", prompt_tokens=6, completion_tokens=5
    )


def test_turns_go_through_the_chat_template_without_a_second_start_token(tmp_path: Path) -> None:
    turns = ({"role": "user", "content": "hi"},)
    request = Request(id="0:0", messages=turns, sampling=GREEDY)
    (answer,) = answered(setup(write_checkpoint(tmp_path)), request)
    assert (answer.text, answer.prompt_tokens) == ("<user>hi<assistant>", 19)


def test_token_ids_are_sent_as_they_are(tmp_path: Path) -> None:
    (answer,) = answered(setup(write_checkpoint(tmp_path)), tokens(104, 105))
    assert (answer.text, answer.prompt_tokens) == ("hi", 2)


def test_an_answer_that_is_cut_says_so(tmp_path: Path) -> None:
    short = Sampling(max_tokens=3)
    (answer,) = answered(setup(write_checkpoint(tmp_path)), text("hello", short))
    assert (answer.text, answer.finish_reason) == ("hel", "length")


def test_a_stop_text_ends_the_answer(tmp_path: Path) -> None:
    request = text("one END two", Sampling(max_tokens=20, stop=(" END",)))
    (answer,) = answered(setup(write_checkpoint(tmp_path)), request)
    assert (answer.text, answer.finish_reason) == ("one", "stop")


def told(found: Completion) -> list[tuple[str, float, list[str]]]:
    return [
        (each["token"], each["logprob"], [other["token"] for other in each["top_logprobs"]])
        for each in json.loads(found.logprobs or "")
    ]


def test_log_probabilities_come_with_the_likeliest_tokens_in_order(tmp_path: Path) -> None:
    model = setup(write_checkpoint(tmp_path))
    asked = [text("hi", Sampling(max_tokens=9, logprobs=n), key=f"0:{n}") for n in (0, 2, 3)]
    none, two, three = map(told, answered(model, *asked))
    assert none == [("h", -1.5, []), ("i", -1.5, [])]
    assert two == [("h", -1.5, ["i", "j"]), ("i", -1.5, ["j", "k"])]  # the chosen one beside them
    assert three == [("h", -1.5, ["i", "j", "h"]), ("i", -1.5, ["j", "k", "i"])]


def test_a_token_that_is_part_of_a_character_has_no_bytes(tmp_path: Path) -> None:
    asked = text("é", Sampling(max_tokens=9, logprobs=0))
    (found,) = answered(setup(write_checkpoint(tmp_path)), asked)
    assert found.text == "é"
    told_ = json.loads(found.logprobs or "")
    assert [(each["token"], each["bytes"]) for each in told_] == [("\ufffd", None)] * 2


def test_more_log_probabilities_than_vllm_was_told_to_give_are_refused(tmp_path: Path) -> None:
    asked = text("hi", Sampling(max_tokens=9, logprobs=5))
    model = write_checkpoint(tmp_path)
    code, message = row_error(setup(model, max_logprobs=4), asked)
    assert code == "request_rejected"
    assert "Requested sample logprobs of 5, which is greater than max allowed: 4" in message


def test_log_probabilities_that_do_not_come_are_the_rows_error(tmp_path: Path) -> None:
    model = setup(write_checkpoint(tmp_path, no_logprobs=True))
    code, message = row_error(model, text("hi", Sampling(max_tokens=9, logprobs=5)))
    assert code == "engine_error"
    assert message == "vLLM gave 0 log probabilities for 2 tokens"
    (plain,) = answered(model, text("hi"))
    assert plain.logprobs is None


def test_max_tokens_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    (answer,) = answered(setup(write_checkpoint(tmp_path)), text("x" * 50, Sampling(max_tokens=99)))
    assert (answer.prompt_tokens, answer.completion_tokens) == (51, 13)


def test_the_longest_prompt_has_room_for_one_token(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    (answer,) = answered(setup(model), text("x" * 62))
    assert (answer.prompt_tokens, answer.completion_tokens) == (63, 1)
    code, message = row_error(setup(model), text("x" * 63))
    assert (code, message) == ("prompt_too_long", "the prompt has 64 tokens, the model takes 63")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (text("refuse"), "request_rejected"),
        (text("hi", Sampling(max_tokens=4, top_p=0.0)), "request_rejected"),
        (tokens(), "empty_prompt"),
        (tokens(5, 300), "request_rejected"),
        (text("fail"), "engine_error"),
        (text("\ufffe"), "engine_error"),
        (
            Request(id="0:0", messages=({"role": "tool", "content": ""},), sampling=GREEDY),
            "template_error",
        ),
    ],
)
def test_what_is_wrong_with_one_row_is_that_rows_error(
    tmp_path: Path, request_: Request, code: str
) -> None:
    async def work(engine: VllmEngine, _: Capabilities) -> str:
        with pytest.raises(RowError) as err:
            await engine.generate(request_)
        assert (await engine.generate(text("next"))).text == "next"
        return err.value.code

    assert asyncio.run(using(setup(write_checkpoint(tmp_path)), work)) == code


def test_without_a_tokenizer_random_weights_answer_token_ids(tmp_path: Path) -> None:
    given = setup(write_checkpoint(tmp_path, tokenizer=False), load_format="dummy")
    (answer,) = answered(given, tokens(1, 2, 3))
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("", 3, 3)
    assert row_error(given, text("hi"))[0] == "request_rejected"
    stopped = Request(id="0:0", tokens=(1,), sampling=Sampling(max_tokens=4, stop=("x",)))
    assert row_error(given, stopped)[0] == "request_rejected"


def test_a_real_checkpoint_has_to_have_its_tokenizer(tmp_path: Path) -> None:
    code, message, _ = start_error(setup(write_checkpoint(tmp_path, tokenizer=False)))
    assert (code, "Can't load tokenizer" in message) == ("engine.model", True)


def test_the_window_is_a_full_step(tmp_path: Path) -> None:
    async def work(_: VllmEngine, capabilities: Capabilities) -> Capabilities:
        return capabilities

    model = write_checkpoint(tmp_path)
    found = asyncio.run(using(setup(model), work))
    assert found == Capabilities(
        max_in_flight=1024, chat_template=True, max_seq_len=64, queues=True
    )
    assert asyncio.run(using(setup(model, max_num_seqs=8), work)).max_in_flight == 8


def test_the_plans_cut_reaches_vllm(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, _: Capabilities) -> Mapping[str, Any]:
        given: Mapping[str, Any] = vars(engine._alive().llm.vllm_config.args)
        return given

    given = setup(write_checkpoint(tmp_path), Cut(tp=4, pp=2, ep=4), max_model_len=32, seed=3)
    found = asyncio.run(using(given, work))
    assert found["tensor_parallel_size"] == found["pipeline_parallel_size"] * 2 == 4
    assert found["enable_expert_parallel"]
    assert found["distributed_executor_backend"] == "mp"
    assert (found["max_model_len"], found["seed"]) == (32, 3)


def test_statistics_are_those_of_the_last_iteration(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, _: Capabilities) -> Mapping[str, float]:
        await engine.generate(text("hello"))
        asked = [text(name, key=name) for name in ("hi", "ho")]
        both = [asyncio.ensure_future(engine.generate(request)) for request in asked]
        await both[0]  # the other one has to wait for its place
        figures = dict(engine.stats())
        await both[1]
        return figures

    model = write_checkpoint(tmp_path, latency_s=0.05)
    assert asyncio.run(using(setup(model, max_num_seqs=1), work)) == {
        "running": 1,
        "queued": 1,
        "kv_cache_usage": 0.25,
        "iterations": 2,
        "generated_tokens": 7,
    }


async def arrived(engine: VllmEngine) -> None:
    """Wait until vLLM has a request."""
    while not engine._alive().llm._queues:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("early", [True, False])
def test_an_aborted_request_is_cancelled_and_the_others_go_on(
    tmp_path: Path, *, early: bool
) -> None:
    async def work(engine: VllmEngine, _: Capabilities) -> str:
        waiting = asyncio.create_task(engine.generate(text("wait", key="0:1")))
        await (asyncio.sleep(0) if early else arrived(engine))
        await engine.abort("0:1")
        await engine.abort("9:9")
        with pytest.raises(RowError) as err:
            await waiting
        assert (await engine.generate(text("hi", key="0:1"))).text == "hi"
        return err.value.code

    assert asyncio.run(using(setup(write_checkpoint(tmp_path)), work)) == "cancelled"


def deaths(given: EngineSetup, *requests: Request) -> list[Any]:
    async def work(engine: VllmEngine, _: Capabilities) -> list[Any]:
        found = await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)
        late = await asyncio.gather(engine.generate(text("late")), return_exceptions=True)
        return [*found, *late]

    return asyncio.run(using(given, work))


def test_a_dead_core_fails_all_in_flight_alike_with_its_own_last_words(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, die_after=1)
    found = deaths(setup(model), text("wait", key="a"), text("wait", key="b"), text("die", key="c"))
    assert all(isinstance(error, RunError) for error in found)
    assert len({error.problems for error in found}) == 1
    (problem,) = found[0].problems
    assert problem.code == "engine.died"
    assert "CUDA out of memory. Tried to allocate 28.00 GiB" in problem.message


def test_what_vllm_cannot_say_is_a_death_too(tmp_path: Path) -> None:
    found = deaths(setup(write_checkpoint(tmp_path)), text("break"))
    assert [error.problems[0].code for error in found] == ["engine.died"] * 2
    assert "KeyError: 'no such request'" in found[0].problems[0].message


def test_requests_that_its_core_gives_up_are_no_rows_errors(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, _: Capabilities) -> str:
        waiting = asyncio.create_task(engine.generate(text("wait", key="0:1")))
        await arrived(engine)
        engine._alive().llm.give_up()
        with pytest.raises(RunError) as err:
            await waiting
        return err.value.problems[0].code

    assert asyncio.run(using(setup(write_checkpoint(tmp_path)), work)) == "engine.died"


@pytest.mark.parametrize(
    ("cause", "code", "said", "advised"),
    [
        ("in-use", "gpu.in-use", "Free memory on device cuda:0", "gpu_memory_utilization"),
        ("weights", "engine.no-memory", "not enough GPU memory", "parallelism.tp"),
        ("no-blocks", "engine.no-memory", "No available memory", "gpu_memory_utilization"),
        ("short-cache", "engine.no-memory", "max seq len (131072)", "max_model_len"),
        ("out-of-memory", "engine.no-memory", "Tried to allocate 28.00 GiB", "max_num_seqs"),
        ("mismatch", "engine.import", "vllm._C_stable_libtorch", "together"),
        ("nccl", "gpu.failed", "unhandled system error", "another node"),
        ("architecture", "engine.model", "no module or parameter named", "log"),
        ("nothing", "engine.model", "Engine core initialization failed", "log"),
    ],
)
def test_why_it_did_not_start_is_told(
    tmp_path: Path, cause: str, code: str, said: str, advised: str
) -> None:
    found, message, hint = start_error(setup(write_checkpoint(tmp_path, start=cause)))
    assert found == code
    assert said in message
    assert advised in hint


def test_options_that_vllm_itself_refuses_are_told_in_its_words(tmp_path: Path) -> None:
    code, message, _ = start_error(setup(write_checkpoint(tmp_path), max_model_len=4096))
    assert code == "engine.options"
    assert message == (
        "vLLM refuses: Value error, User-specified max_model_len (4096) is greater than the "
        "derived max_model_len (max_position_embeddings=64)"
    )


@pytest.mark.parametrize(
    ("option", "better"),
    [
        ("gpu_memory_utilisation", "write gpu_memory_utilization"),
        ("max-num-seqs", "write max_num_seqs"),
        ("max_batch_size", "set max_num_seqs"),
        ("max_seq_len", "set max_model_len"),
        ("temperature", "set sampling.temperature of the job file"),
        ("tp", "set parallelism.tp of the job file"),
        ("tensor_parallel_size", "remove it and set parallelism.tp"),
        ("data_parallel_size", "remove it and set replicas"),
        ("_api_process_count", "use a field of vLLM's EngineArgs"),
    ],
)
def test_a_wrong_option_gets_the_right_one(tmp_path: Path, option: str, better: str) -> None:
    code, message, hint = start_error(setup(write_checkpoint(tmp_path), None, **{option: 1}))
    assert (code, hint) == ("engine.options", better)
    assert option in message


def test_all_wrong_options_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RunError) as err:
        answered(setup(write_checkpoint(tmp_path), tp=2, max_seqs=3))
    assert [problem.code for problem in err.value.problems] == ["engine.options"] * 2


@pytest.mark.parametrize("device", ["", "cpu"])
def test_a_vllm_that_sees_no_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("STANDIN_DEVICE", device)
    code, message, hint = start_error(setup(write_checkpoint(tmp_path)))
    assert (code, message) == (
        "engine.import",
        f"vLLM 0.24.0 sees {device or 'no device'} here, and no GPU",
    )
    assert "--nv" in hint


def test_a_vllm_that_cannot_be_imported_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "vllm"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(broken.parent)
    code, message, hint = start_error(setup(write_checkpoint(tmp_path)))
    assert (code, "libcudart.so.13: cannot open" in message) == ("engine.import", True)
    assert "together" in hint


@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_without_a_configuration_is_no_checkpoint(
    tmp_path: Path, *, there: bool
) -> None:
    code, message, _ = start_error(setup(tmp_path if there else None))
    assert (code, "config.json is missing" in message) == ("engine.model", True)


def test_what_the_user_sets_in_the_environment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    answered(setup(write_checkpoint(tmp_path)))
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_warning_from_slurm_does_not_reach_its_processes(tmp_path: Path) -> None:
    async def work(_: VllmEngine, __: Capabilities) -> list[int]:
        status = [Path(f"/proc/{pid}/status").read_text() for pid, _ in started()]
        return [int(s.split("SigBlk:")[1].split()[0], 16) for s in status]

    blocked = asyncio.run(using(setup(write_checkpoint(tmp_path), Cut(tp=2)), work))
    assert len(blocked) == 3
    assert all(mask & 1 << 9 for mask in blocked)  # SIGUSR1 is 10


@pytest.mark.parametrize("how", [{}, {"stubborn": True}, {"die_after": 1, "stubborn": True}])
def test_closing_leaves_no_process(tmp_path: Path, how: dict[str, Any]) -> None:
    async def work(engine: VllmEngine, _: Capabilities) -> int:
        processes = len(started())
        await asyncio.gather(engine.generate(text("x")), return_exceptions=True)
        return processes

    assert asyncio.run(using(setup(write_checkpoint(tmp_path, **how), Cut(tp=2)), work)) == 3
    assert not started()


def test_a_shutdown_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.engines.library.CLOSE_S", 0.2)
    answered(setup(write_checkpoint(tmp_path, shutdown_hangs=True, stubborn=True)), text("x"))
    assert not started()


def test_a_start_that_hangs_can_be_left(tmp_path: Path) -> None:
    async def work() -> None:
        engine = create("vllm", setup(write_checkpoint(tmp_path, start="hang", stubborn=True)))
        starting = asyncio.create_task(engine.start())
        while not started():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await engine.close()

    asyncio.run(work())
    assert not started()


def test_before_its_start_and_after_its_end_it_answers_nothing(tmp_path: Path) -> None:
    async def work() -> list[str]:
        engine = create("vllm", setup(write_checkpoint(tmp_path)))
        with pytest.raises(RunError) as early:
            await engine.generate(text("x"))
        await engine.start()
        await engine.close()
        with pytest.raises(RunError) as late:
            await engine.generate(text("x"))
        await engine.close()
        return [early.value.problems[0].code, late.value.problems[0].code]

    assert asyncio.run(work()) == ["engine.died"] * 2


def test_on_one_node_it_has_one_process() -> None:
    with pytest.raises(RunError, match="process 0") as err:
        follow("vllm", setup(None))
    assert err.value.problems[0].code == "engine.unavailable"
