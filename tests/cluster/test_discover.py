"""A cluster that is asked for its own site file, which then serves on it."""

from __future__ import annotations

import pytest
import yaml
from cli_driving import poll
from cluster.user import User

pytestmark = pytest.mark.slurm


def test_a_discovered_site_file_plans_and_runs_a_job_to_its_end(user: User) -> None:
    recorded, out = user.folder / "recorded", user.folder / "found.yaml"
    done = user.cli("site", "discover", "--probe", "gpu", "--save", recorded, "--out", out)
    assert done.code == 0, done.out + done.err
    assert "asks a node of gpu" in done.err
    site = yaml.safe_load(out.read_text())
    assert site["detect"] == {"cluster_name": "hpcllmtest"}
    assert site["launch"] == {"with": "srun", "mpi": "pmix"}
    assert (site["scheduler"]["version"], site["scheduler"]["max_array_size"]) == ("22.05", 101)
    gpu = site["partitions"]["gpu"]
    assert (gpu["time_limit"], gpu["cpus"]["count"], gpu["memory"]) == ("2h", 8, "4000MiB")
    assert (gpu["gpus"]["model"], gpu["gpus"]["per_node"]) == ("h100", 8)
    assert gpu["gpus"]["request"] == "--gpus-per-node=h100:{n}"
    assert {"memory", "link", "topology"}.isdisjoint(gpu["gpus"])  # no driver told of them
    assert gpu["fabric"] == {"type": "ethernet"}

    again = user.cli("site", "discover", "--from", recorded)
    assert again.out.rstrip("\n") == out.read_text().rstrip("\n")
    assert user.cli("site", "check", out).code == 0
    job = user.job(rows=2, resources={"partition": "gpu", "time": "10m", "gpus_per_node": 2})
    assert user.cli("plan", job, "--site", out).code == 0
    submitted = user.cli("submit", job, "--site", out)
    assert submitted.code == 0, submitted.out + submitted.err
    poll(lambda: user.status()["state"] == "done", "the end of the run")
