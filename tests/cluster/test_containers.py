"""Ranks that see no more of a node than a container does have what PMIx keeps for them there.

There is no container runtime here. The stand-in for Apptainer takes from its process what an
image takes: the directory in which Slurm's PMIx servers have theirs, unless it is bound, and the
host's values of variables that the image sets. The rest of the node stays as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_driving import Cli, write_job
from cluster.cluster import Cluster
from cluster.mpis import LAUNCHES, install
from cluster.test_ranks import batch, given_to, rank_reports, state, until

pytestmark = pytest.mark.slurm

APPTAINER = r"""#!/bin/bash
set -e
[ "$1" = exec ]
shift
binds=() place=/
while [[ $1 == --* ]]; do
  case $1 in
    --bind) binds+=("${2%%:*}"); shift 2 ;;
    --pwd) place=$2; shift 2 ;;
    *) shift ;;
  esac
done
echo "image $1 is shown ${binds[*]}"
shift
export PYTHONPATH=/of/the/image
server=$(printf '%s\n' "${binds[@]}" | grep -Fx -- "${PMIX_SERVER_TMPDIR:-none}" || true)
exec unshare --mount --propagation private bash -c '
  place=$1 bound=$2 hidden=$(dirname "${PMIX_SERVER_TMPDIR:-/tmp/none}")
  shift 2
  case $hidden in
    /tmp*) ;; # the user guide, "Bind Paths and Mounts": /tmp is always there
    *)
      kept=$(mktemp -d)
      [ -z "$bound" ] || mount --bind "$bound" "$kept"
      mount -t tmpfs none "$hidden"
      [ -z "$bound" ] || { mkdir -p "$bound" && mount --bind "$kept" "$bound"; }
      ;;
  esac
  cd "$place" && exec "$@"
' apptainer "$place" "$server" "$@"
"""
BIND = '${PMIX_SERVER_TMPDIR:+--bind "$PMIX_SERVER_TMPDIR"} '


@pytest.fixture(scope="module", autouse=True)
def mpis(cluster: Cluster) -> None:
    install()


class Scene:
    """A job of four ranks on two nodes, each of which meets the others by MPI, in an image."""

    def __init__(self, cluster: Cluster, folder: Path, launch: str) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        (folder / "home").mkdir()
        (folder / "bin").mkdir()
        (folder / "bin/apptainer").write_text(APPTAINER)
        (folder / "bin/apptainer").chmod(0o755)
        self._cli = Cli(folder / "home", {"SLURM_CONF": str(cluster.conf)})
        written = LAUNCHES[launch].site(folder)
        site = yaml.safe_load(written.read_text())
        path = site.setdefault("env", {}).get("PATH", os.environ["PATH"])
        site["env"]["PATH"] = f"{folder / 'bin'}:{path}"
        site["container"] = {"runtime": "apptainer"}
        written.write_text(yaml.safe_dump(site))
        job = write_job(
            folder,
            rows=[{"text": str(i)} for i in range(4)],
            parallelism={"tp": 2, "pp": 2},
            resources={"gpus_per_node": 2, "time": "10m"},
            runtime={"image": "/i.sif", "python": str(LAUNCHES[launch].python(folder))},
        )
        done = self._cli.ask("render", job, "--site", written, "--out", self.run)
        assert done.code == 0, done.out + done.err
        self.script = self.run / "script.sh"

    def log(self) -> str:
        return "".join(log.read_text() for log in sorted((self.run / "logs").glob("*.s0.log")))


@pytest.fixture
def stopped(shared: Path) -> Iterator[None]:
    """Leaves no next start of a job on the cluster."""
    yield
    if (shared / "run/control").is_dir():
        (shared / "run/control/STOP").touch()


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4", "openmpi5"])
@pytest.mark.usefixtures("stopped")
def test_mpi_joins_the_ranks_across_the_boundary(
    launch: str, cluster: Cluster, shared: Path
) -> None:
    scene = Scene(cluster, shared, launch)
    with batch(cluster, scene.script, cwd=scene.run) as job:
        given_to(cluster, job)
        until((scene.run / "DONE").exists, f"DONE in {scene.run}")
    assert sorted(re.findall(r"mpi (\d) of 4", scene.log())) == ["0", "1", "2", "3"]
    assert len(rank_reports(scene.log())) == 4
    assert scene.log().count("image /i.sif is shown") == 4
    assert "PMIX ERROR" not in scene.log()


@pytest.mark.usefixtures("stopped")
def test_without_the_directory_of_their_pmix_server_ranks_complain(
    cluster: Cluster, shared: Path
) -> None:
    """PMIx 4.2 then does without shared memory; others are said to give up."""
    scene = Scene(cluster, shared, "srun-pmix")
    text = scene.script.read_text()
    assert BIND in text
    scene.script.write_text(text.replace(BIND, ""))
    with batch(cluster, scene.script, cwd=scene.run) as job:
        given_to(cluster, job)
        until(lambda: state(cluster, job) not in ("RUNNING", "COMPLETING"), "the end")
    assert "image /i.sif is shown" in scene.log()
    assert "PMIX ERROR" in scene.log()
