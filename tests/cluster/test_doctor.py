"""`hpc-llm doctor` on a real Slurm: well nodes, a slow link, a rank where its job is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Done, poll
from cluster.user import SITE, User
from vllm_standin import write_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

# A rank that is started by hand on a node of nobody's, where no variable of the job is.
ELSEWHERE = """#!/bin/sh
if [ "$SLURM_PROCID" = 1 ]; then
  exec env -u SLURM_JOB_ID nsenter --target={slurmd} --net --uts --mount \\
    sh -c 'cd "$0" && exec {python} "$@"' "$PWD" "$@"
fi
exec {python} "$@"
"""
# Eight GPUs, but for one that a node has lost.
LIST = """#!/bin/sh
for n in 0 1 2 3 4 5 6; do echo "GPU $n: NVIDIA H100 80GB HBM3 (UUID: GPU-$(hostname)-$n)"; done
[ "$(hostname)" = node02 ] || echo "GPU 7: NVIDIA H100 80GB HBM3 (UUID: GPU-$(hostname)-7)"
"""


def site_of(user: User, *, gpus: bool = False) -> Path:
    """The cluster's site, with a network of 1 Gbit/s and, unless told, no GPUs."""
    kept, _, of_gpus = SITE.read_text().rstrip().rpartition("\n")
    fabric = "    fabric: {type: ethernet, rate: 1}"
    path = user.folder / "site.yaml"
    path.write_text("\n".join([kept, *([of_gpus] if gpus else []), fabric, ""]))
    return path


def visited(user: User, nodes: int, *more: str, gpus: bool = False) -> Done:
    return user.cli.ask(
        *("doctor", "--site", site_of(user, gpus=gpus), "--nodes", str(nodes), "--wait"),
        *("--directory", user.folder / "doctor", "--set", f"runtime.python={sys.executable}"),
        *more,
    )


def rows(done: Done, part: str) -> list[dict[str, Any]]:
    return [row for row in done.data["rows"] if row["part"].startswith(part)]


@contextmanager
def shaped(node: str, rate: str) -> Iterator[None]:
    """While it lasts, ``node`` sends no faster than that."""
    tc = ("ip", "netns", "exec", node, "tc", "qdisc")
    words = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms")
    subprocess.run([*tc, "add", "dev", "eth0", *words], check=True)
    try:
        yield
    finally:
        subprocess.run([*tc, "del", "dev", "eth0", "root"], check=True)


def test_nodes_that_are_well_are_told_with_the_figures_of_their_links(user: User) -> None:
    done = visited(user, 3)
    assert (done.code, done.data["judged"]) == (0, True), done
    assert len({row["node"] for row in rows(done, "node")}) == 3
    links = rows(done, "link")
    assert [row["part"] for row in links] == ["link 0-1", "link 0-2", "link 1-2"]
    assert {row["verdict"] for row in links} == {"ok"}
    assert all(" GB/s of 0.125, " in row["seen"] for row in links)
    again = user.cli("doctor", done.data["run"])
    assert again.code == 0
    assert "link 1-2" in again.out


def test_a_node_with_a_slow_link_is_named_with_both_figures(user: User) -> None:
    with shaped("node02", "80mbit"):
        done = visited(user, 3, "--set", "resources.exclude=node04")
    assert done.code == 4, done
    assert {p["code"] for p in done.json["problems"]} == {"preflight.slow-link"}
    first = done.json["problems"][0]["message"]
    assert first.startswith("exchange of rank 0 on node01 and rank 1 on node02 has ")
    assert first.endswith(" GB/s, and the site declares 0.125 GB/s")
    found = re.search(r" has (?:less than )?(\S+) GB/s", first)
    assert found
    assert float(found[1]) < 0.02
    verdicts = {row["part"]: row["verdict"] for row in rows(done, "link")}
    bad = "preflight.slow-link"
    assert verdicts == {"link 0-1": bad, "link 0-2": "ok", "link 1-2": bad}
    [ended] = (Path(done.data["run"]) / "jobs").glob("*.died")
    assert json.loads(ended.read_bytes())["host"] == "node02"


def test_a_job_with_a_slow_link_starts_no_engine_and_leaves_that_node_out(user: User) -> None:
    own = user.with_environment(HPC_LLM_SITE=str(site_of(user)))
    model = write_checkpoint(user.folder / "model")
    config = json.loads((model / "config.json").read_text())
    in_three = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    in_three["intermediate_size"] = 192
    (model / "config.json").write_text(json.dumps(config | in_three))
    job = own.job(
        engine="transformers",
        model=str(model),
        parallelism={"tp": 3},
        allow=["tp-over-fabric"],
        resources={"partition": "gpu", "time": "10m", "exclude": "node04"},
    )
    with shaped("node02", "80mbit"):
        number = own.submit(job)
        ended = own.run / "jobs" / f"{number}.0.s0.died"
        poll(ended.exists, "the end of the step")
    found = json.loads(ended.read_bytes())
    assert found["host"] == "node02"
    assert {problem["code"] for problem in found["problems"]} == {"preflight.slow-link"}
    poll(lambda: "node02" in own.shown(number, "ExcNodeList"), "the node left out")
    done = own.cli.ask("doctor", own.run)
    assert done.code == 4
    assert set(done.codes) == {"preflight.slow-link"}


def test_a_rank_that_is_where_its_job_is_not_is_named(user: User) -> None:
    listed = subprocess.run(
        ["ip", "netns", "pids", "node04"], capture_output=True, text=True, check=True
    ).stdout.split()
    python = user.folder / "python"
    python.write_text(ELSEWHERE.format(slurmd=listed[0], python=sys.executable))
    python.chmod(0o755)
    nodes = ("--set", "resources.exclude=node03,node04", "--set", f"runtime.python={python}")
    done = visited(user, 2, *nodes)
    assert done.code == 4, done
    [problem] = done.json["problems"]
    assert problem["code"] == "preflight.wrong-node"
    assert problem["message"].endswith(
        "has the nodes node[01-02], and not that of rank 1 on node04"
    )


def test_a_gpu_that_a_node_has_lost_is_named(user: User) -> None:
    programs = user.folder / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(LIST)
    (programs / "nvidia-smi").chmod(0o755)
    path = f"env.PATH={programs}:/usr/local/bin:/usr/bin:/bin"
    done = visited(user, 2, "--set", path, "--set", "resources.exclude=node03,node04", gpus=True)
    assert done.code == 4, done
    [problem] = done.json["problems"]
    assert problem["code"] == "preflight.gpus"
    assert problem["message"] == "rank 8 on node02 is to use GPU 7, and sees 7 GPUs"
    [wrong] = [row for row in rows(done, "GPU") if row["verdict"] != "ok"]
    assert (wrong["node"], wrong["part"]) == ("node02", "GPU 7")
