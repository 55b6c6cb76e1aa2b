"""Three ranks on this machine: how they meet and part, and that they answer as one does."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import team_ranks

from launcher.engines import meeting as meeting_module
from launcher.engines import team as team_module
from launcher.engines.base import EngineSetup
from launcher.engines.causal_lm import TransformersOptions, load
from launcher.engines.registry import create
from launcher.engines.team import Team
from launcher.errors import RunError
from launcher.plan.types import Cut

pytestmark = pytest.mark.local

WORLD = 3
CHECKOUT = Path(__file__).resolve().parents[2]


class Ranks:
    """The processes of one team, and what each said last."""

    def __init__(self, case: str, folder: Path, *words: Path) -> None:
        script = CHECKOUT / "tests" / "team_ranks.py"
        # No GPU: gloo, and the same numbers wherever this runs.
        environ = os.environ | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""}
        self._processes = [
            subprocess.Popen(
                [sys.executable, script, case, str(rank), str(WORLD), folder, *words],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(WORLD)
        ]
        try:
            ended = [process.communicate(timeout=100) for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
        self.codes = [process.returncode for process in self._processes]
        self.noise = [err for _, err in ended]
        self.said: list[dict[str, Any]] = [
            json.loads(out.splitlines()[-1]) if out else {} for out, _ in ended
        ]


@pytest.fixture(scope="module")
def talk(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks("talk", tmp_path_factory.mktemp("talk"))


@pytest.fixture(scope="module")
def cut(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """SmolLM2 over three ranks: it served, ended, and was loaded once more to be looked at."""
    return Ranks("model", tmp_path_factory.mktemp("cut"), smollm2)


@pytest.fixture
def hurried(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody will come, a second is enough to find out."""
    for module in (team_module, meeting_module):
        monkeypatch.setattr(module, "MEET_S", 1.0)


def rendezvous_problem(rank: int, world: int, meeting: Path | None) -> str:
    with pytest.raises(RunError) as err:
        Team(rank, world, meeting)
    assert [problem.code for problem in err.value.problems] == ["run.rendezvous"]
    return err.value.problems[0].message


def test_every_rank_hears_and_agrees_to_what_the_first_one_says(talk: Ranks) -> None:
    assert [said["heard"] for said in talk.said] == [True] * WORLD
    assert [said["agreed"] for said in talk.said] == [[0, 1]] * WORLD


def test_ranks_that_wait_learn_at_once_that_the_first_one_is_gone(talk: Ranks) -> None:
    assert talk.codes == [-signal.SIGKILL, 0, 0]
    assert [said["abandoned"] for said in talk.said[1:]] == ["DistNetworkError"] * 2


def test_a_team_of_one_needs_nobody() -> None:
    team = Team(0, 1, None)
    assert team.share({"a": 1}) == {"a": 1}
    assert team.agree("tensor") == "tensor"
    team.leave()


def test_a_later_rank_leaves_quietly_when_the_first_one_needs_nobody(
    smollm2: Path, tmp_path: Path
) -> None:
    (tmp_path / "meeting").write_text("null")
    with pytest.raises(SystemExit) as err:
        Team(1, WORLD, tmp_path / "meeting")
    assert err.value.code == 0


@pytest.mark.usefixtures("hurried")
def test_a_first_rank_that_never_says_where_it_is_ends_the_wait(tmp_path: Path) -> None:
    message = rendezvous_problem(1, WORLD, tmp_path / "meeting")
    assert str(tmp_path / "meeting") in message
    assert "within 1 s" in message


@pytest.mark.usefixtures("hurried")
def test_ranks_that_never_come_are_named(tmp_path: Path) -> None:
    message = rendezvous_problem(0, WORLD, tmp_path / "meeting")
    assert message == "rank 1, 2 did not come within 1 s"
    assert json.loads((tmp_path / "meeting").read_text())[0] == socket.gethostname()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("host", ["nowhere.invalid", socket.gethostname()])
def test_an_address_that_leads_nowhere_is_named(tmp_path: Path, host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))  # and nobody listens on it
        port = taken.getsockname()[1]
        (tmp_path / "meeting").write_text(json.dumps([host, port]))
        message = rendezvous_problem(2, WORLD, tmp_path / "meeting")
    assert message.startswith(f"rank 2 on {socket.gethostname()}, to reach rank 0 at ")
    assert f":{port}: " in message


@pytest.mark.usefixtures("smollm2")
def test_several_ranks_without_a_place_to_meet_are_refused() -> None:
    assert "no place to meet" in rendezvous_problem(0, 2, None)


def test_ranks_that_would_share_one_device_are_refused(smollm2: Path) -> None:
    setup = EngineSetup(model_path=str(smollm2), cut=Cut(tp=2), options={"device": "cuda:0"})
    with pytest.raises(RunError) as err:
        asyncio.run(create("transformers", setup).start())
    assert [problem.code for problem in err.value.problems] == ["engine.options"]


def test_three_ranks_end_in_order_and_without_noise(cut: Ranks) -> None:
    assert cut.noise == ["", "", ""]
    assert cut.codes == [0, 0, 0]


def test_each_rank_holds_a_third_of_what_is_cut(cut: Ranks) -> None:
    for said in cut.said:
        numbers = said["numbers"]
        assert numbers["held_of_cut"] * WORLD <= numbers["cut"]
        # Nearly all of it is cut: what is whole are the norms.
        assert numbers["whole"] < numbers["cut"] / 1000


def test_three_ranks_give_the_logits_of_one(cut: Ranks, smollm2: Path) -> None:
    import torch

    model = load(team_ranks.alone(smollm2), TransformersOptions(dtype="float32"))
    wanted = torch.tensor(team_ranks.float64_logits(model), dtype=torch.float64)
    for said in cut.said:
        found = torch.tensor(said["logits"], dtype=torch.float64)
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < 1e-6  # in float32: 1e-4


def test_three_ranks_give_the_answers_of_one(cut: Ranks, smollm2: Path) -> None:
    one = asyncio.run(team_ranks.converse(create("transformers", team_ranks.alone(smollm2))))
    three = copy.deepcopy(cut.said[0])
    told, wanted = (json.loads(each["answers"]["narrow"].pop("logprobs")) for each in (three, one))
    assert [each["logprob"] for each in told] == pytest.approx(
        [each["logprob"] for each in wanted], abs=1e-3
    )
    assert all(len(each["top_logprobs"]) == 2 for each in told)
    assert three["answers"] == one["answers"]
    answers = three["answers"]
    assert answers["greedy"]["text"] == "The capital of France is Paris."
    assert answers["stopped"]["text"] == "The capital of France is"
    assert answers["stopped"]["finish_reason"] == "stop"
    assert answers["drawn"]["text"] != answers["twin"]["text"]
    assert (answers["short"]["completion_tokens"], answers["short"]["finish_reason"]) == (
        3,
        "length",
    )


def test_rows_end_one_by_one_and_closing_ends_the_rest(cut: Ranks) -> None:
    assert cut.said[0]["ran_on"]
    assert cut.said[0]["ends"] == ["cancelled", "engine.died"]
