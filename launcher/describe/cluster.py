"""What is true of the cluster as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.describe.captures import Slurm
from launcher.describe.facts import Facts

__all__ = ["cluster_facts", "container_facts"]

_CONFIG = "scontrol show config"
_MPI = ("pmix", "pmi2", "cray_shasta")


def cluster_facts(facts: Facts, slurm: Slurm, captures: Mapping[str, str]) -> None:
    """Say name, scheduler, launch and pyxis."""
    facts.say(("scheduler", "type"), "slurm", "Slurm's commands")
    facts.say(("launch", "with"), "srun", "Slurm's own; ask whether the site wants mpirun")
    if config := slurm.config:
        cluster = config.cluster
        facts.say(("detect", "cluster_name"), cluster, f"ClusterName of {_CONFIG}")
        version = re.match(r"\d\d\.\d\d(?!\d)", config.version or "")
        facts.say(("scheduler", "version"), version and version[0], f"SLURM_VERSION of {_CONFIG}")
        size = config.max_array_size or None
        facts.say(("scheduler", "max_array_size"), size, f"MaxArraySize of {_CONFIG}")
        if config.requeue:
            facts.say(("scheduler", "restart"), "requeue", f"JobRequeue=1 of {_CONFIG}")
        filters = [n for n in ("JobSubmitPlugins", "CliFilterPlugins") if _set(slurm.setting(n))]
        if filters:
            facts.notes.append(
                f"{' and '.join(filters)} of {_CONFIG} may refuse options that Slurm itself takes"
            )
    facts.ask(("scheduler", "restart"), "may users have jobs requeued (sbatch --requeue)?")
    facts.ask(("scheduler", "reject"), "which options of sbatch does the site refuse?")
    facts.ask(("scheduler", "account_required"), "are jobs without --account refused?")
    facts.ask(("scratch", "node_local"), "which directory is on the node's own disk?")
    facts.ask(("internet",), "do compute nodes reach it? --probe tells")
    _mpi_facts(facts, slurm)
    facts.ask(("container", "runtime"), "how do images start there? module avail apptainer")
    if "--container-image" in captures.get("srun-help.txt", ""):
        facts.say(("container", "runtime"), "pyxis", "srun --help")


def container_facts(facts: Facts, captures: Mapping[str, str], where: str) -> None:
    """Say which of apptainer's two names is on PATH, unless srun has pyxis."""
    if facts.value(("container", "runtime")) == "pyxis":
        return
    lines = captures.get("commands.txt", "").splitlines()
    names = {line.strip().rpartition("/")[2] for line in lines}
    command = next((name for name in ("apptainer", "singularity") if name in names), None)
    if command:
        facts.say(("container", "runtime"), "apptainer", f"{command} on PATH {where}")
        facts.say(("container", "command"), command, f"{command} on PATH {where}")


def _mpi_facts(facts: Facts, slurm: Slurm) -> None:
    """PMIx where it is there: Open MPI 5 knows nothing else; on Cray what is the default."""
    default = slurm.setting("MpiDefault").partition("_v")[0]
    at, listed = ("launch", "mpi"), slurm.mpi
    facts.ask(at, "which MPI is for srun? srun --mpi=list")
    if listed is None:
        if default in _MPI:
            facts.say(at, default, f"MpiDefault of {_CONFIG}")
    elif default in _MPI and default not in listed:
        facts.ask(at, f"MpiDefault is {default}, srun --mpi=list has {', '.join(listed)}")
    elif default == "cray_shasta" or (default == "pmi2" and "pmix" not in listed):
        facts.say(at, default, f"MpiDefault of {_CONFIG}; srun --mpi=list")
    elif "pmix" in listed:
        facts.say(at, "pmix", "srun --mpi=list")


def _set(setting: str) -> bool:
    return setting not in ("", "(null)", "none")
