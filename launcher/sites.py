"""Which site this is: named, remembered in the environment, or recognised."""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import Problem, SpecError
from launcher.resources import find_site, site_names
from launcher.spec.rules import read_site
from launcher.spec.site import Fabric, SiteSpec
from launcher.spec.source import Source, parse

__all__ = ["LoadedSite", "choose_site", "load_site", "outline"]

_FABRICS = {
    "infiniband": "InfiniBand",
    "slingshot": "Slingshot",
    "ethernet": "Ethernet",
    "omnipath": "Omni-Path",
}


class LoadedSite:
    """A site file: its typed form, the text it came from, and why it was chosen."""

    def __init__(self, spec: SiteSpec, source: Source, text: str, reason: str) -> None:
        self.spec, self.source, self.text, self.reason = spec, source, text, reason


def load_site(name: str, reason: str) -> LoadedSite:
    """Read the site called ``name``, or the file at that path.

    Raises
    ------
    SpecError
        ``site.unknown``, ``spec.unreadable``, or what is wrong inside.
    """
    entry = find_site(name)
    try:
        text = entry.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        hint = "see `hpc-llm site list` for the sites there are"
        raise SpecError(
            Problem("spec.unreadable", f"cannot read {entry}: {exc}", hint=hint)
        ) from exc
    source = parse(str(entry), text)
    return LoadedSite(read_site(source), source, text, reason)


def choose_site(
    named: str | None, *, partition: str | None, environ: Mapping[str, str] = os.environ
) -> LoadedSite:
    """The site that ``--site`` names, else ``$HPC_LLM_SITE``, else the one recognised here.

    A machine without Slurm is the site ``local``, unless the job names a partition.

    Raises
    ------
    SpecError
        ``site.undetected`` when no site or several match.
    """
    if named:
        return load_site(named, "--site")
    if from_environment := environ.get("HPC_LLM_SITE"):
        return load_site(from_environment, "$HPC_LLM_SITE")
    matching = [name for name in site_names(environ) if _matches(load_site(name, "").spec)]
    if len(matching) == 1:
        return load_site(matching[0], "detected")
    if not matching and partition is None and not _slurm_here():
        return load_site("local", "no Slurm on this machine")
    found = f"sites {', '.join(matching)} all match" if matching else "no site file matches"
    hint = "name one with --site (`hpc-llm site list`), or write a site file for this cluster"
    raise SpecError(Problem("site.undetected", f"{found} this machine", hint=hint))


def outline(site: SiteSpec) -> str:
    """The GPUs of a site's nodes and the network between them, each kind once.

    For instance ``h100 x 4, InfiniBand 4 x 200 Gbit/s``.
    """
    kinds = (
        f"{p.gpus.model} x {p.gpus.per_node}{_network(p.fabric)}"
        for p in site.partitions.values()
        if p.gpus is not None
    )
    return "; ".join(dict.fromkeys(kinds)) or "no GPUs stated"


def _network(fabric: Fabric | None) -> str:
    if fabric is None:
        return ""
    number, rate = len(fabric.rails) or fabric.nics, fabric.rate
    ports = "" if number is None else f"{number} x" if rate else f"{number} port(s)"
    words = (_FABRICS[fabric.type], ports, f"{rate} Gbit/s" if rate else "")
    return f", {' '.join(filter(None, words))}"


def _matches(site: SiteSpec) -> bool:
    detect = site.detect
    if detect.hostname and re.search(detect.hostname, socket.getfqdn()):
        return True
    return detect.cluster_name is not None and detect.cluster_name == _cluster_name()


def _slurm_here() -> bool:
    """Whether this machine belongs to a Slurm cluster, not only has its commands installed."""
    return shutil.which("sbatch") is not None and _slurm_config() is not None


def _cluster_name() -> str | None:
    found = re.search(r"(?im)^\s*ClusterName\s*=\s*(\S+)", _slurm_config() or "")
    return found[1] if found else None


@functools.cache
def _slurm_config() -> str | None:
    """Slurm's configuration as text, from its file or from the controller; None without any.

    A controller that does not answer is a cluster all the same: its text is empty then.
    """
    path = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    if path.is_file():
        return path.read_text(errors="replace")
    if shutil.which("scontrol") is None:
        return None
    command = ["scontrol", "show", "config"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return ""
    # What every command of Slurm says where nobody has configured it (slurm, src/common).
    unconfigured = "Could not establish a configuration source" in done.stderr
    return None if unconfigured else done.stdout
