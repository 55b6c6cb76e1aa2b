"""Nodes that are not fit for a replica are found, named and left out before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_driving import poll
from cluster.cluster import Cluster
from cluster.mpis import LAUNCHES, install
from cluster.user import User
from trtllm_standin import python_path, write_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

NODES = ("node01", "node02", "node03", "node04")
# A node's own device of InfiniBand, and no leave to lock memory as one likes.
BOUND = """#!/bin/sh
exec unshare --mount sh -c '
  mount -t tmpfs none /sys/class && mkdir -p /sys/class/infiniband/mlx5_0
  ulimit -l 8192 || exit 9
  exec setpriv --inh-caps=-ipc_lock --bounding-set=-ipc_lock --ambient-caps=-ipc_lock {python} "$@"
' bound "$@"
"""


def on(node: str, *command: str | Path) -> None:
    """Run in the namespaces of ``node``, whose /tmp is its own."""
    listed = subprocess.run(
        ["ip", "netns", "pids", node], capture_output=True, text=True, check=True
    ).stdout.split()
    [slurmd] = [pid for pid in listed if f"slurmd\0-N\0{node}" in _words(pid)]
    enter = ("nsenter", f"--target={slurmd}", "--mount", "--")
    subprocess.run([*enter, *map(str, command)], check=True)


def _words(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


@pytest.fixture
def local_model(cluster: Cluster, shared: Path) -> Iterator[Path]:
    """A checkpoint on a disk of each node, and of the one that submits."""
    written = write_checkpoint(shared / "model")
    (written / "model-00001-of-00001.safetensors").write_bytes(bytes(3 << 20))
    path = Path("/tmp") / f"hpc-llm-{os.getpid()}-{shared.name[-8:]}"
    shutil.copytree(written, path)
    for node in NODES:
        on(node, "cp", "-r", written, path)
    yield path
    shutil.rmtree(path)
    for node in NODES:
        on(node, "rm", "-rf", path)


def job_of(
    user: User, model: Path, *, pp: int = 4, mpi: str = "pmix", **changes: Any
) -> tuple[User, Path]:
    """A job over ``pp`` nodes, and whose site starts ranks with ``mpi``."""
    site = LAUNCHES["srun-pmix"].site(user.folder)
    site.write_text(site.read_text().replace("mpi: pmix", f"mpi: {mpi}"))
    own = user.with_environment(HPC_LLM_SITE=str(site), PYTHONPATH=python_path())
    job = own.job(
        engine="tensorrt-llm",
        model=str(model),
        parallelism={"pp": pp},
        engine_options={"max_batch_size": 4},
        sampling={"max_tokens": 16},
        **changes,
    )
    return own, job


def submit(user: User, model: Path, **changes: Any) -> tuple[User, str]:
    own, job = job_of(user, model, **changes)
    return own, own.submit(job)


def log(user: User, job: str) -> str:
    return (user.run / "logs" / f"{job}.s0.log").read_text()


def end(user: User, job: str, kind: str) -> dict[str, Any]:
    path = user.run / "jobs" / f"{job}.0.s0.{kind}"
    poll(path.exists, f"{path.name}")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_four_nodes_with_a_model_of_their_own_agree(user: User, local_model: Path) -> None:
    own, job = submit(user, local_model)
    own.until_file("DONE")
    said = re.search(
        r"preflight: 4 ranks on 4 nodes agree in (\S+) s \(model (\S+) s\)", log(own, job)
    )
    assert said, log(own, job)
    kept = json.loads((own.run / f"control/{job}.0.s0.preflight").read_bytes())
    assert {rank["host"] for rank in kept["ranks"]} == set(NODES)
    [library] = {rank["node"]["mpi"] for rank in kept["ranks"]}
    assert library.startswith("Open MPI v4.")


def test_a_node_without_the_model_is_named_and_left_out(user: User, local_model: Path) -> None:
    on("node02", "rm", "-r", local_model)
    own, path = job_of(user, local_model, pp=2)
    assert own.cli.ask("render", path, "--out", own.run).code == 0
    where = ("--nodelist=node01,node02", f"--export=ALL,PYTHONPATH={python_path()}")
    words = ("sbatch", "--parsable", *where, str(own.run / "script.sh"))
    job = own.cluster.run(*words).strip()
    details = end(own, job, "died")
    [problem] = details["problems"]
    assert (problem["code"], details["host"]) == ("preflight.model-missing", "node02")
    missing = f"rank 1 on node02: No such file or directory: {local_model}/config.json"
    assert missing in problem["message"]
    assert "mgmn_" not in log(own, job)
    poll(lambda: own.shown(job, "ExcNodeList") == "node02", "the node left out")
    own.cluster.run("scontrol", "update", f"JobId={job}", "ReqNodeList=")
    poll(lambda: own.shown(job, "Priority") != "0", "the end of the hold")
    own.release(job)
    own.until_file("DONE")
    assert own.texts() == ["0", "1", "2", "3"]


def test_a_node_with_another_shard_is_named_and_its_file_too(user: User, local_model: Path) -> None:
    shard = local_model / "model-00001-of-00001.safetensors"
    # Of the same length, and otherwise at its end.
    on("node03", "sh", "-c", f"printf x | dd of={shard} bs=1 seek=3145727 conv=notrunc status=none")
    own, job = submit(user, local_model)
    details = end(own, job, "died")
    [problem] = details["problems"]
    assert (problem["code"], details["host"]) == ("preflight.model-differs", "node03")
    assert re.search(rf"differs in {shard.name}: rank \d on node03$", problem["message"])


def test_a_launcher_without_pmix_is_told_before_ranks_believe_to_be_alone(
    user: User, local_model: Path
) -> None:
    own, job = submit(user, local_model, pp=2, mpi="none")
    [problem] = end(own, job, "failed")["problems"]
    assert problem["code"] == "preflight.mpi"
    alone = r"Open MPI v4\.\S+ would be alone, as the launcher \(srun, launch\.mpi none\) offers no"
    assert re.search(alone, problem["message"])
    assert "launch.mpi: pmix" in problem["hint"]
    assert own.ended(job)[0] == "FAILED"
    assert "mgmn_" not in log(own, job)


def test_mpich_under_pmix_is_told_with_a_remedy_of_its_own(user: User, local_model: Path) -> None:
    install()
    mpich = LAUNCHES["srun-pmi2"].library
    env = {"MPI4PY_MPIABI": "mpich", "LD_LIBRARY_PATH": str(mpich.parent)}
    own, job = submit(user, local_model, pp=2, env=env)
    [problem] = end(own, job, "failed")["problems"]
    assert problem["code"] == "preflight.mpi"
    assert "MPICH" in problem["message"]
    assert "offers PMIx only" in problem["message"]
    assert "Open MPI" in problem["hint"]


def test_memory_that_may_not_be_locked_is_told_where_there_is_infiniband(
    user: User, local_model: Path
) -> None:
    python = user.folder / "bound-python"
    python.write_text(BOUND.format(python=sys.executable))
    python.chmod(0o755)
    own, job = submit(user, local_model, pp=2, runtime={"python": str(python)})
    [problem] = end(own, job, "failed")["problems"]
    assert problem["code"] == "preflight.locked-memory"
    assert str(8192 * 1024) in problem["message"]
    assert "ulimit -l unlimited" in problem["hint"]
