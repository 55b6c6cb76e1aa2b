"""The wrapper of a rank of TensorRT-LLM, around small programs in the place of its modules."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cli_driving import poll, started

from launcher.rundir import RunDir
from launcher.runner.leader import inside_mpi, meeting_point, outside_mpi

TESTS = Path(__file__).parents[1]
HASTY = {"HPC_LLM_PATIENCE": "0.004"}
READY = "print('[00:00:00] replica 0: engine tensorrt-llm is ready after 1.0 s', flush=True)\n"
NAP = "import time; time.sleep(60)\n"
# The leader ends when it is told to, by a file in the place of a message.
LEADER = """\
import os, pathlib, sys, time
stop = pathlib.Path(os.environ["STAGE"], "stop")
if "--action" in sys.argv:
    stop.touch()
    sys.exit()
print("leader at work", flush=True)
while not stop.exists():
    time.sleep(0.02)
sys.exit(3)
"""
STUBBORN = 'import sys; sys.exit() if "--action" in sys.argv else None\n' + NAP
SHOW = """\
import json, os, sys
from pathlib import Path
name = Path(sys.argv[0]).name + ".env"
Path(os.environ["STAGE"], name).write_text(json.dumps(dict(os.environ)))
"""
AFTER_LEADER = """\
import os, pathlib, time
while not pathlib.Path(os.environ["STAGE"], "mgmn_leader_node.py.env").exists():
    time.sleep(0.02)
"""
LISTEN = """\
import os, pathlib, signal, sys, time
stage = pathlib.Path(os.environ["STAGE"])
def heard(number, _):
    (stage / signal.Signals(number).name).touch()
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)  # it may come twice
        sys.exit(75)
signal.signal(signal.SIGUSR1, heard)
signal.signal(signal.SIGTERM, heard)
(stage / "listening").touch()
while True:
    time.sleep(0.02)
"""


class Scene:
    """A run directory and the programs of one rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = RunDir(folder / "run")
        self.run.create()
        self._modules = folder / "modules/tensorrt_llm/llmapi"
        self._modules.mkdir(parents=True)
        for package in (self._modules, self._modules.parent):
            (package / "__init__.py").touch()

    def start(
        self,
        *,
        rank: int = 0,
        world: int = 2,
        runner: str = "",
        leader: str = LEADER,
        worker: str = "",
        **environ: str,
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        (self._modules / "mgmn_leader_node.py").write_text(leader)
        (self._modules / "mgmn_worker_node.py").write_text(worker)
        script = self.folder / "runner.py"
        script.write_text(runner)
        path = (self._modules.parents[1], TESTS, TESTS.parent)
        own = {"PYTHONPATH": os.pathsep.join(map(str, path)), "STAGE": str(self.folder)}
        words = (self.run.path, rank, world, script)
        return started(
            [sys.executable, TESTS / "leader_ranks.py", *map(str, words)],
            env={**os.environ, **own, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def end(self, **how: Any) -> tuple[int, str]:
        """Start a rank and wait: its exit code, and what it printed."""
        with self.start(**how) as process:
            said, _ = process.communicate(timeout=50)
        return process.returncode, said

    def outcomes(self) -> dict[str, list[str]]:
        found = self.run.outcomes("7", 0)
        return {kind: [p["code"] for p in details["problems"]] for kind, details in found}

    def message(self) -> str:
        [(_, details)] = self.run.outcomes("7", 0)
        return str(details["problems"][0]["message"])

    def environ(self, name: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / f"{name}.py.env").read_text())
        return found

    def until(self, name: str) -> None:
        poll((self.folder / name).exists, name)

    def left(self) -> list[int]:
        """Processes of this scene that live on."""
        listed = (p for p in Path("/proc").iterdir() if p.name.isdigit())
        mark = f"STAGE={self.folder}".encode()
        return [int(p.name) for p in listed if mark in _read(p / "environ")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is another's
        return b""


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def leaked(environ: Mapping[str, str]) -> list[str]:
    of_mpi = r"(OMPI|PMIX|PMI|SLURM|SLURMD|MPI|UCX|I_MPI|HYDRA|KMP|MPICH|MV2|CRAY)_.*"
    return [name for name in environ if re.fullmatch(of_mpi, name)]


GIVEN = {
    "OMPI_COMM_WORLD_RANK": "0",
    "PMIX_RANK": "0",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "7",
    "SLURMD_NODENAME": "node01",
    "UCX_TLS": "tcp",
    "HPC_LLM_SITE": "x",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "TLLM_SPAWN_PROXY_PROCESS": "1",
    "tllm_mpi_size": "9",
}


def test_the_runner_is_no_rank_and_knows_nothing_of_one() -> None:
    assert outside_mpi(GIVEN) == {"HPC_LLM_SITE": "x", "CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_rank_under_mpirun_is_not_taken_for_the_one_of_slurm() -> None:
    inside = inside_mpi(GIVEN, "mpirun")
    assert not {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID", "tllm_mpi_size"} & inside.keys()
    assert {"SLURM_JOB_ID", "OMPI_COMM_WORLD_RANK", "UCX_TLS"} <= inside.keys()
    assert "SLURM_PROCID" in inside_mpi(GIVEN, "srun")


def test_two_steps_of_a_node_never_meet() -> None:
    with meeting_point(4) as one, meeting_point(4) as other:
        for name in ("ADDR", "HMAC_KEY"):
            key = f"TLLM_SPAWN_PROXY_PROCESS_IPC_{name}"
            assert one[key] != other[key]
        assert one["tllm_mpi_size"] == "4"
        assert len(bytes.fromhex(one["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"])) == 32


def test_a_leader_may_listen_at_the_port_that_is_kept_for_it() -> None:
    import socket

    with meeting_point(2) as contract, socket.socket() as leader:
        host, _, port = contract["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"][6:].partition(":")
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))
        leader.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        leader.bind((host, int(port)))
        leader.listen()
        socket.create_connection((host, int(port)), 5).close()


def test_the_outcome_is_the_runners_whatever_the_leader_returns(scene: Scene) -> None:
    code, said = scene.end(leader=SHOW + LEADER, runner=SHOW, **GIVEN)
    assert code == 0
    assert "leader at work" in said
    assert scene.outcomes() == {}  # the runner writes its own
    assert scene.run.world_path("7", 0, 0).exists()
    runner, leader = scene.environ("runner"), scene.environ("mgmn_leader_node")
    assert leaked(runner) == []
    # Of the two that wrote it the stop action was the last, and that is no rank either.
    assert leaked(leader) == []
    for name in ("IPC_ADDR", "IPC_HMAC_KEY"):
        key = f"TLLM_SPAWN_PROXY_PROCESS_{name}"
        assert runner[key] == leader[key]
    assert runner["tllm_mpi_size"] == "2"
    assert runner["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"] not in said
    written = (p for p in scene.run.path.rglob("*") if p.is_file())
    key_bytes = runner["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"].encode()
    assert not [p for p in written if key_bytes in p.read_bytes()]
    assert scene.left() == []


def test_a_runner_that_fails_ends_everything_at_once(scene: Scene) -> None:
    before = time.monotonic()
    assert scene.end(runner="raise SystemExit(7)")[0] == 7
    assert time.monotonic() - before < 20
    assert not (scene.folder / "stop").exists()
    assert scene.left() == []


def test_a_runner_that_is_killed_says_so(scene: Scene) -> None:
    code, _ = scene.end(runner="import os; os.kill(os.getpid(), 9)")
    assert (code, scene.outcomes()) == (7, {"died": ["run.died"]})
    assert re.fullmatch(r"rank 0 on \S+: its runner was killed by SIGKILL", scene.message())


def test_a_leader_that_dies_takes_the_runner_with_it(scene: Scene) -> None:
    leader = "raise ValueError('MPI has no world today')"
    code, said = scene.end(leader=leader, runner=NAP)
    assert (code, scene.outcomes()) == (7, {"died": ["engine.died"]})
    assert "ValueError: MPI has no world today" in scene.message()
    assert "Traceback" in said
    assert scene.left() == []


def test_a_leader_that_does_not_stop_is_killed_and_so_are_the_ranks_that_wait(
    scene: Scene,
) -> None:
    """The launcher ends those when this one ends badly; the outcome stays what it was."""
    with scene.start(leader=STUBBORN, runner="raise SystemExit(75)") as process:
        said, _ = process.communicate(timeout=50)
    assert process.returncode == 75
    assert "the leader did not end in time" in said
    assert scene.outcomes() == {}
    assert scene.left() == []


@pytest.mark.parametrize(
    ("line", "kind", "code"),
    [
        ("MpiCommSession rank1 task [<f>] failed with exception: boom", "died", "engine.died"),
        ("[TRT-LLM] [E] Failed to initialize executor on rank 1: boom", "died", "engine.died"),
        ("Executor creation failed due to insufficient GPU memory.", "failed", "engine.no-memory"),
        ("rank 0 using MpiPoolSession to spawn MPI processes", "failed", "run.spawn"),
    ],
)
def test_a_worker_that_says_it_is_lost_is_not_waited_for(
    scene: Scene, line: str, kind: str, code: str
) -> None:
    worker = f"import sys; print({line!r}, file=sys.stderr, flush=True)\n{NAP}"
    before = time.monotonic()
    ended, said = scene.end(rank=1, worker=worker)
    assert time.monotonic() - before < 20
    assert (ended, scene.outcomes()) == (7, {kind: [code]})
    assert line in said
    assert scene.message().startswith("rank 1 on ")
    assert scene.left() == []


@pytest.mark.parametrize("kind", ["done", "resumable"])
def test_a_worker_that_outlives_its_step_is_not_waited_for(scene: Scene, kind: str) -> None:
    """Under mpirun nobody else would end it."""
    worker = "print('at work', flush=True)\n" + NAP
    with scene.start(rank=1, worker=worker, STOP_S="0.2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        scene.run.outcome_path("7", 0, 0, kind).write_text('{"problems": []}')
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "the step is over, and its worker is killed" in said
    assert scene.outcomes() == {kind: []}
    assert scene.left() == []


def test_a_worker_that_is_let_go_leaves_no_outcome(scene: Scene) -> None:
    assert scene.end(rank=1, worker="print('worker rank1 quited')") == (0, "worker rank1 quited\n")
    assert scene.outcomes() == {}


def test_a_worker_gets_no_key(scene: Scene) -> None:
    scene.end(rank=1, worker=SHOW, **GIVEN)
    environ = scene.environ("mgmn_worker_node")
    assert "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY" not in environ
    assert environ["tllm_mpi_size"] == "2"
    assert "SLURM_PROCID" not in environ
    assert environ["OMPI_COMM_WORLD_RANK"] == "0"


def test_the_word_of_another_rank_stands(scene: Scene) -> None:
    path = scene.run.outcome_path("7", 0, 0, "failed")
    path.write_text('{"replica": 0, "host": "node02", "problems": []}')
    worker = "print('*** An error occurred in MPI_Recv', flush=True)\nraise SystemExit(15)"
    assert scene.end(rank=1, worker=worker)[0] == 7
    assert scene.outcomes() == {"failed": []}


def test_the_echo_of_a_failure_is_the_last_word_where_no_rank_has_another(scene: Scene) -> None:
    worker = "print('*** An error occurred in MPI_Recv', flush=True)\nraise SystemExit(15)"
    assert scene.end(rank=1, worker=worker)[0] == 7
    assert scene.outcomes() == {"died": ["run.died"]}


def test_a_start_that_stands_still_is_ended_with_its_phase_and_last_line(scene: Scene) -> None:
    runner = f"print('Prefetching 1.00GB checkpoint files.', flush=True)\n{NAP}"
    silent = LEADER.replace("print", "str")
    code, _ = scene.end(leader=silent.replace(", flush=True", ""), runner=runner, **HASTY)
    assert (code, scene.outcomes()) == (7, {"died": ["run.stalled"]})
    assert "to load the weights (phase load" in scene.message()
    assert scene.message().endswith("the last line was: Prefetching 1.00GB checkpoint files.")


def test_where_few_lines_are_logged_each_phase_still_has_an_end(scene: Scene) -> None:
    """Bars of progress are drawn at every level: what comes after them is not told."""
    runner = f"print('Loading weights: 100%', flush=True)\n{NAP}"
    hasty = {"HPC_LLM_PATIENCE": "0.0004", "TLLM_LOG_LEVEL": "error"}
    code, _ = scene.end(runner=runner, **hasty)
    assert (code, scene.outcomes()) == (7, {"died": ["run.stalled"]})
    assert "to load the weights (phase load, 3 s at most)" in scene.message()


def test_an_engine_with_less_room_than_was_asked_for_answers_nothing(scene: Scene) -> None:
    leader = "print('[TRT-LLM] [W] Adjusted max_seq_len to 64', flush=True)\n" + SHOW + LEADER
    runner = f"{AFTER_LEADER}{READY}{NAP}"
    code, _ = scene.end(leader=leader, runner=runner)
    assert (code, scene.outcomes()) == (7, {"failed": ["engine.no-memory"]})
    assert "room for rows of 64 tokens, and engine_options ask for 100" in scene.message()


def test_one_with_enough_says_how_much_it_has(scene: Scene) -> None:
    words = ("Adjusted max_seq_len to 128", "for max tokens in paged KV cache (4096).")
    leader = "".join(f"print({text!r}, flush=True)\n" for text in words) + SHOW + LEADER
    with scene.start(leader=leader, runner=AFTER_LEADER + READY + LISTEN) as process:
        assert process.stdout is not None
        said = ""
        while "warning[engine.no-memory]" not in said:
            said += (line := process.stdout.readline())
            assert line, said
        assert "the KV cache holds 4096 tokens" in said
        heard = scene.run.figures_path("7", 0, 0)
        poll(heard.exists, "the figures for the runner")
        assert json.loads(heard.read_text()) == {"max_seq_len": 128, "kv_tokens": 4096}
        process.terminate()
        process.communicate(timeout=50)
    assert (process.returncode, scene.outcomes()) == (75, {})


def test_signals_are_the_runners_alone(scene: Scene) -> None:
    with scene.start(runner=LISTEN) as process:
        scene.until("listening")
        process.send_signal(signal.SIGUSR1)
        scene.until("SIGUSR1")
        # As Slurm does, which signals all processes of a step.
        mark = f"STAGE={scene.folder}".encode()
        for pid in scene.left():
            if mark in _read(Path(f"/proc/{pid}/environ")):
                os.kill(pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=50)
    assert process.returncode == 75
    assert (scene.folder / "stop").exists()  # the leader has lived on, and was stopped in order
    assert "is killed" not in said
    assert scene.outcomes() == {}


def test_a_runner_that_does_not_leave_when_asked_is_ended_and_resumable(scene: Scene) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN)\n" + LISTEN.replace(
        "signal.signal(signal.SIGTERM, heard)\n", ""
    )
    with scene.start(runner=deaf) as process:
        scene.until("listening")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=50)
    assert (process.returncode, scene.outcomes()) == (75, {"resumable": []})
    assert scene.left() == []


def test_a_worker_that_is_asked_to_leave_waits_for_the_leader(scene: Scene) -> None:
    worker = """\
import os, pathlib, time
stage = pathlib.Path(os.environ["STAGE"])
(stage / "listening").touch()
while not (stage / "stop").exists():
    time.sleep(0.02)
"""
    with scene.start(rank=1, worker=worker) as process:
        scene.until("listening")
        process.send_signal(signal.SIGTERM)
        (scene.folder / "stop").touch()
        process.communicate(timeout=50)
    assert (process.returncode, scene.outcomes()) == (0, {})


def test_a_rank_that_is_alone_starts_nothing_but_the_runner(scene: Scene) -> None:
    runner = SHOW + "print('rank 0 using MpiPoolSession to spawn MPI processes', flush=True)\n"
    code, said = scene.end(world=1, leader="raise SystemExit(9)", runner=runner, **GIVEN)
    assert (code, scene.outcomes()) == (0, {})
    assert "is killed" not in said
    environ = scene.environ("runner")
    assert leaked(environ) == []
    assert not [name for name in environ if name.startswith(("TLLM_SPAWN", "tllm_mpi"))]


def test_lines_are_passed_on_as_they_came(scene: Scene) -> None:
    data = b"\x1b[31mred\x1b[0m\nhalf \xff\r\n10%\r20%\r" + b"x" * 200_000 + b"\nno end"
    runner = f"import os\nfor i in range(0, {len(data)}, 1000): os.write(2, {data!r}[i:i + 1000])\n"
    with scene.start(world=1, runner=runner) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        said = b"".join(iter(lambda: os.read(pipe, 1 << 16), b""))
    assert said.replace(b"\n", b"") == data.replace(b"\n", b"")


def say_as_nccl(text: str) -> str:
    """A program that does."""
    return f"import os, sys; open(os.environ['NCCL_DEBUG_FILE'], 'w').write({text!r})\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_network_on_which_the_step_must_not_go_on_ends_the_rank(scene: Scene, rank: int) -> None:
    say = say_as_nccl((TESTS / "fixtures/nccl/sockets.log").read_text())
    code, said = scene.end(
        rank=rank, leader=say + NAP, worker=say + NAP, runner=NAP, ON_INFINIBAND="1"
    )
    assert code == 7
    assert scene.outcomes() == {"died": ["run.fabric"]}
    assert "NCCL uses sockets" in said


def test_the_log_of_nccl_that_the_user_asked_for_tells_causes_too(scene: Scene) -> None:
    line = "h1:1:1 [0] init.cc:1 NCCL WARN Mismatched NCCL version detected : ranks 1"
    how = {"ON_INFINIBAND": "1", "NCCL_DEBUG": "WARN"}
    code, said = scene.end(rank=1, worker=say_as_nccl(line + "\n") + "sys.exit(1)\n", **how)
    assert code == 7
    assert line in said
    assert scene.outcomes() == {"failed": ["engine.import"]}
