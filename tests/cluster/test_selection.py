"""What a site and a job say of nodes is what Slurm is told, and takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from cli_driving import poll
from cluster.cluster import Cluster
from cluster.user import User

pytestmark = pytest.mark.slurm

_SITE = Path(__file__).with_name("site.yaml")


def shown(cluster: Cluster, job: str) -> dict[str, str]:
    """What Slurm knows of ``job``."""
    return dict(re.findall(r"(\w+)=(\S*)", cluster.run("scontrol", "show", "job", job)))


def test_slurm_takes_what_site_and_job_say_of_nodes(user: User) -> None:
    site = yaml.safe_load(_SITE.read_text())
    site["scheduler"]["version"] = "22.05"
    described = site["partitions"].pop("gpu")
    described["gpus"]["unit"] = "node"
    site["partitions"]["fast"] = {
        **described,
        "select": {"partition": "gpu"},
        "topology": {"type": "tree", "nodes": 2, "wait": "10s"},
        "limits": {"max_nodes": 2, "jobs_running": 4},
    }
    path = user.folder / "fast.yaml"
    path.write_text(yaml.safe_dump(site))
    job = user.job(
        rows=4,
        parallelism={"tp": 2, "pp": 2},
        resources={
            "gpus_per_node": 2,
            "time": "10m",
            "exclude": "node01",
            "sbatch": ["--nice=3", "--comment=of-this-test"],
        },
    )
    done = user.cli.ask("submit", job, "--site", path)
    assert done.code == 0, done.out + done.err
    assert done.codes == ["plan.idle-gpus", "plan.pp-few-rows", "site.never-run"]
    found = shown(user.cluster, done.data["job"])
    assert (found["Partition"], found["ExcNodeList"]) == ("gpu", "node01")
    assert (found["Comment"], found["NumNodes"].partition("-")[0]) == ("of-this-test", "2")
    assert "gres/gpu=16" in found["TRES"] or "gres:gpu:8" in found["TresPerNode"]
    assert found["Switches"].startswith("1@")
    user.until("done")
    log = "".join(log.read_text() for log in (user.run / "logs").glob("*.s0.log"))
    hosts = set(re.findall(r'"host": "(\w+)"', log))
    assert len(hosts) == 2
    assert "node01" not in hosts
    poll(lambda: user.status()["state"] == "done", "the end of the run")
