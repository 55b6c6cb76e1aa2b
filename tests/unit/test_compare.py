"""When two identities are one run, and what is said when they are not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.compare import differences
from launcher.plan.grid import make_grid
from launcher.plan.types import InputFile, ModelRef, PromptSpec, RunIdentity, Sampling

A = InputFile(path="/data/a.jsonl", size=100, mtime_ns=1, span=100)
B = InputFile(path="/data/b.jsonl", size=200, mtime_ns=2, span=200)
RUN = RunIdentity(
    name="r",
    model=ModelRef(name="m", path="/models/m", digest="d1"),
    inputs=(A, B),
    prompt=PromptSpec(prompt="{{ text }}"),
    sampling=Sampling(max_tokens=16),
    grid=make_grid(300),
    keep=("id",),
)


def test_a_run_is_itself_and_what_it_is_read_back_as() -> None:
    assert differences(RUN, RUN) == []
    assert differences(RUN, RunIdentity.from_json(RUN.to_json())) == []


def test_other_log_probabilities_are_another_run_and_none_is_what_old_runs_asked_for() -> None:
    told = replace(RUN, sampling=replace(RUN.sampling, logprobs=0))
    assert differences(RUN, told) == ["sampling.logprobs: None -> 0"]
    old = RUN.to_json()
    del old["sampling"]["logprobs"]
    assert differences(RunIdentity.from_json(old), RUN) == []


def test_a_model_may_move_but_not_change() -> None:
    moved = replace(RUN, model=replace(RUN.model, path="/elsewhere"))
    assert differences(RUN, moved) == []
    other = replace(RUN, model=replace(RUN.model, digest="d2"))
    assert differences(RUN, other) == ["model.digest: 'd1' -> 'd2'"]


def test_each_difference_is_named_by_its_key_with_both_values() -> None:
    new = replace(
        RUN, name="s", sampling=replace(RUN.sampling, temperature=0.7, stop=("\n",)), keep="none"
    )
    assert differences(RUN, new) == [
        "name: 'r' -> 's'",
        "sampling.temperature: 0.0 -> 0.7",
        "sampling.stop: () -> ('\\n',)",
        "keep: ('id',) -> 'none'",
    ]


def test_input_files_are_compared_one_by_one() -> None:
    new = replace(
        RUN,
        inputs=(replace(A, size=101), InputFile(path="/data/c.jsonl", size=1, mtime_ns=0, span=1)),
    )
    lines = differences(RUN, new)
    assert [line.split(":")[0] for line in lines] == [
        "input /data/a.jsonl",
        "input /data/b.jsonl",
        "input /data/c.jsonl",
    ]
    assert "100 -> 101" in lines[0]


def test_a_file_that_was_only_touched_is_a_difference() -> None:
    assert len(differences(RUN, replace(RUN, inputs=(replace(A, mtime_ns=9), B)))) == 1


def test_the_same_files_in_another_order_are_a_difference() -> None:
    # A row is named by the number of its file, so another order is another run.
    assert differences(RUN, replace(RUN, inputs=(B, A))) != []


@given(st.sampled_from(["name", "keep", "schema"]), st.text(max_size=3))
def test_no_change_goes_unseen(key: str, value: str) -> None:
    new = RunIdentity.from_json({**RUN.to_json(), key: value})
    assert bool(differences(RUN, new)) == (new != RUN)


def test_the_lines_come_in_one_order_in_every_process() -> None:
    script = (
        "from dataclasses import replace\n"
        "from launcher.plan.compare import differences\n"
        "from launcher.plan.types import *\n"
        "run = RunIdentity(name='a', model=ModelRef(name='b'), inputs=(), prompt=PromptSpec(),\n"
        "    sampling=Sampling(max_tokens=1), keep='all',\n"
        "    grid=UnitGrid(total_bytes=1, unit_bytes=1, head_units=1, tail_bytes=1))\n"
        "new = replace(run, name='b', schema=2, keep='none', model=ModelRef(name='c'),\n"
        "    sampling=Sampling(max_tokens=2, seed=3, top_k=4), prompt=PromptSpec(prompt='p'))\n"
        "print(differences(run, new))\n"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(answers) == 1
