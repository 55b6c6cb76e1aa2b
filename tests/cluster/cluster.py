"""A real Slurm cluster of several nodes on one Debian machine, for the tests.

Each node is a network, host-name and mount namespace with a slurmd of its own, so that hosts have
their own name, address and ``/tmp``; the controller, the accounting daemon and munge are the real
ones. GPUs are device files. Everything lives below one directory and is gone after `Cluster.down`.

    python tests/cluster/cluster.py up|down|env [--profile default|no-accounting|cgroup]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NODES", "PACKAGES", "PROFILES", "Cluster", "Profile", "install", "why_not"]

PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurmdbd", "slurm-wlm-mysql-plugin", "munge"),
    *("mariadb-server", "openmpi-bin", "libopenmpi-dev", "libpmix2", "iproute2"),
)
NODES = tuple(f"node0{i}" for i in range(1, 5))
GPUS_PER_NODE = 8
CPUS_PER_NODE = 8
_CONTROLLER = "slctl"
_SUBNET = "10.89.77"
_BRIDGE = "hlslbr0"
ROOT = Path("/srv/hpc-llm-cluster")
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How the cluster is configured."""

    accounting: bool = True
    cgroup: bool = False


PROFILES: Mapping[str, Profile] = {
    "default": Profile(),
    "no-accounting": Profile(accounting=False),
    "cgroup": Profile(accounting=False, cgroup=True),
}


def why_not() -> str | None:
    """Why no cluster can be had on this machine; None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the test cluster needs root on Linux"
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return "the test cluster needs Debian's Slurm packages"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], check=False)
    return None if probe.returncode == 0 else "the test cluster needs namespaces"


def install() -> None:
    """Install Debian's packages unless they are there. No service of theirs is left running."""
    if all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "mpirun"))):
        return
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    _run("apt-get", "update", "-qq", env=environ)
    _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, env=environ)


class Cluster:
    """One cluster; `up` and `down` may be called in any state."""

    def __init__(self, profile: Profile, root: Path = ROOT) -> None:
        self.profile = profile
        self.root = root
        self.conf = root / "etc" / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """``environ`` for a login shell of this cluster."""
        return {**environ, "SLURM_CONF": str(self.conf)}

    def run(self, *command: str, check: bool = True) -> str:
        """Standard output of a Slurm command on this cluster's login node."""
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def up(self) -> None:
        """Start everything and wait until every node is idle."""
        self.down()
        for name in ("etc", "log", "run", "state", "shared"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._devices()
        self._network()
        self._configure()
        self._munge()
        if self.profile.accounting:
            self._database()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        _wait_for("idle nodes", self._all_idle)

    def down(self) -> None:
        """Stop everything of this cluster and remove what it made outside its directory."""
        for _ in range(50):
            pids = list(self._processes())
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        while self._daemons:
            self._daemons.pop().wait()
        for i, node in enumerate(NODES):
            _run("ip", "netns", "del", node, check=False)
            _run(
                "ip", "link", "del", f"hlsl{i}", check=False
            )  # gone with the node, but not at once
        _run("ip", "link", "del", _BRIDGE, check=False)
        _hosts({})
        shutil.rmtree(self.root, ignore_errors=True)

    def is_up(self) -> bool:
        """Whether the controller answers; its nodes may be at work."""
        return self.conf.is_file() and "is UP" in self.run("scontrol", "ping", check=False)

    def start_controller(self) -> None:
        """slurmctld, under the host name that the configuration gives the controller."""
        script = f"hostname {_CONTROLLER}; exec slurmctld -D -i"
        self._spawn("slurmctld", "unshare", "--uts", "sh", "-c", script)
        _wait_for("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))

    def start_node(self, node: str) -> None:
        """slurmd of one node, in namespaces of its own.

        ``nsenter`` and not ``ip netns exec``: that remounts /sys, and slurmd finds no cgroups.
        A private /tmp, or PMIx servers of two nodes meet in one directory and the second fails.
        """
        own_tmp = "mount -t tmpfs tmpfs /tmp"
        if _CHECKOUT.is_relative_to("/tmp"):  # seen by the nodes all the same
            kept, checkout = shlex.quote(f"{self.root}/checkout"), shlex.quote(str(_CHECKOUT))
            own_tmp = (
                f"mkdir -p {kept}; mount --bind {checkout} {kept}; {own_tmp}; "
                f"mkdir -p {checkout}; mount --bind {kept} {checkout}"
            )
        script = f"hostname {node}; {own_tmp}; exec slurmd -N {node} -D"
        enter = ("nsenter", f"--net=/run/netns/{node}", "unshare", "--uts", "--mount")
        self._spawn(f"slurmd-{node}", *enter, "sh", "-c", script)

    def kill_node(self, node: str) -> None:
        """End slurmd and everything that runs on ``node``, as a power cut would."""
        for _ in range(50):
            pids = _run("ip", "netns", "pids", node).split()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)

    def stop_controller(self) -> None:
        """End slurmctld in order, so that its state is saved."""
        pid = int((self.root / "run" / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        _wait_for("the end of slurmctld", lambda: not Path(f"/proc/{pid}").exists())

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split()
        return len(states) == len(NODES) and set(states) == {"idle"}

    def _spawn(self, name: str, *command: str) -> None:
        environ = self.environment({"PATH": os.environ["PATH"], "HPC_LLM_CLUSTER": str(self.root)})
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            daemon = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def _processes(self) -> Iterator[int]:
        """What was started by `_spawn`, and its children: all carry the cluster's mark."""
        mark = f"HPC_LLM_CLUSTER={self.root}".encode()
        conf = f"SLURM_CONF={self.conf}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                environ = (entry / "environ").read_bytes().split(b"\0")
                daemon = (entry / "comm").read_text().strip() in ("slurmstepd", "slurm_script")
                if mark in environ or (daemon and conf in environ):
                    yield int(entry.name)

    def _devices(self) -> None:
        directory = self.root / "dev"
        directory.mkdir(exist_ok=True)
        for i in range(GPUS_PER_NODE):
            # A character device, since device cgroups know nothing else; the numbers of /dev/null.
            os.mknod(directory / f"nvidia{i}", 0o20666, os.makedev(1, 3))

    def _network(self) -> None:
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{_SUBNET}.1/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        for i, node in enumerate(NODES):
            link = f"hlsl{i}"
            inside = ("ip", "-n", node)
            _run("ip", "netns", "add", node)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", node)
            _run("ip", "link", "set", link, "master", _BRIDGE, "up")
            _run(*inside, "addr", "add", f"{_SUBNET}.{11 + i}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "route", "add", "default", "via", f"{_SUBNET}.1")
        addresses = {node: f"{_SUBNET}.{11 + i}" for i, node in enumerate(NODES)}
        _hosts({_CONTROLLER: f"{_SUBNET}.1", **addresses})

    def _configure(self) -> None:
        nodes = f"node0[1-{len(NODES)}]"
        root = self.root
        accounting = (
            "AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost={_CONTROLLER}\nAccountingStorageTRES=gres/gpu\n"
            # The munge socket of the way to slurmdbd; AuthInfo is not used there.
            f"AccountingStoragePass={root}/run/munge.socket\n"
            "JobAcctGatherType=jobacct_gather/linux\n"
            if self.profile.accounting
            else "AccountingStorageType=accounting_storage/none\n"
        )
        plugins = (
            "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\n"
            if self.profile.cgroup
            else "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
        )
        self.conf.write_text(
            f"ClusterName=hpcllmtest\nSlurmctldHost={_CONTROLLER}({_SUBNET}.1)\n"
            "SlurmUser=root\nAuthType=auth/munge\nCredType=cred/munge\n"
            f"AuthInfo=socket={root}/run/munge.socket\n"
            f"StateSaveLocation={root}/state\nSlurmctldPidFile={root}/run/slurmctld.pid\n"
            f"SlurmdSpoolDir={root}/run/spool-%n\nSlurmdPidFile={root}/run/slurmd-%n.pid\n"
            f"SlurmctldLogFile={root}/log/slurmctld.log\nSlurmdLogFile={root}/log/slurmd-%n.log\n"
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\n"
            "MpiDefault=pmix\nGresTypes=gpu\nReturnToService=2\nSlurmdParameters=config_overrides\n"
            # Or a job of a part of a node would have all of its memory.
            "DefMemPerCPU=100\n"
            "SlurmdTimeout=30\nKillWait=5\nMessageTimeout=10\nMaxArraySize=101\n"
            "SchedulerParameters=sched_interval=2,bf_interval=2\n"
            f"{plugins}{accounting}"
            f"NodeName={nodes} CPUs={CPUS_PER_NODE} SocketsPerBoard=2 CoresPerSocket=4 "
            f"ThreadsPerCore=1 RealMemory=4000 Gres=gpu:h100:{GPUS_PER_NODE}\n"
            f"PartitionName=gpu Nodes={nodes} Default=YES MaxTime=02:00:00 State=UP\n"
        )
        (root / "etc/gres.conf").write_text(
            f"NodeName={nodes} Name=gpu Type=h100 File={root}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"
        )
        constrain = "ConstrainDevices=yes\n" if self.profile.cgroup else ""
        (root / "etc/cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n{constrain}"
        )

    def _munge(self) -> None:
        key, run = self.root / "etc/munge.key", self.root / "run"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # munged wants to own what it reads, and nobody else to be able to write above it.
        self._spawn(
            *("munged", "munged", "--foreground", "--force", f"--key-file={key}"),
            f"--socket={run}/munge.socket",
            *(f"--pid-file={run}/munged.pid", f"--log-file={self.root}/log/munged.log"),
            f"--seed-file={run}/munged.seed",
        )
        _wait_for("munged", (run / "munge.socket").exists)

    def _database(self) -> None:
        data, sock = self.root / "mysql", self.root / "run/mysql.sock"
        _run("mariadb-install-db", "--user=root", f"--datadir={data}", "--skip-test-db")
        self._spawn(
            *("mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
            *(f"--socket={sock}", "--bind-address=127.0.0.1", "--port=33779"),
            *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"),
        )
        sql = (
            "CREATE DATABASE IF NOT EXISTS slurm; CREATE USER IF NOT EXISTS slurm@localhost "
            "IDENTIFIED BY 'slurm'; GRANT ALL ON slurm.* TO slurm@localhost; "
            "CREATE USER IF NOT EXISTS slurm@127.0.0.1 IDENTIFIED BY 'slurm'; "
            "GRANT ALL ON slurm.* TO slurm@127.0.0.1;"
        )
        client = ("mariadb", "--no-defaults", f"--socket={sock}", "-e")
        _wait_for("mariadb", lambda: _succeeds(*client, "SELECT 1"))
        _run(*client, sql)
        conf = self.root / "etc/slurmdbd.conf"
        conf.write_text(
            f"DbdHost={_CONTROLLER}\nDbdAddr={_SUBNET}.1\nSlurmUser=root\nAuthType=auth/munge\n"
            f"AuthInfo=socket={self.root}/run/munge.socket\n"
            f"PidFile={self.root}/run/slurmdbd.pid\nLogFile={self.root}/log/slurmdbd.log\n"
            "StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort=33779\n"
            "StorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm\n"
        )
        conf.chmod(0o600)
        script = f"hostname {_CONTROLLER}; exec slurmdbd -D"
        self._spawn("slurmdbd", "unshare", "--uts", "sh", "-c", script)
        _wait_for("slurmdbd", _listens)
        cluster = ("sacctmgr", "-i", "add", "cluster", "hpcllmtest")
        _wait_for("the accounting", lambda: _succeeds(*cluster, env=self.environment()))


def _listens() -> bool:
    with contextlib.suppress(OSError), socket.create_connection((f"{_SUBNET}.1", 6819), 1):
        return True
    return False


def _hosts(names: Mapping[str, str]) -> None:
    """Put ``names`` into /etc/hosts, in place of those of an earlier cluster."""
    mark = "# hpc-llm test cluster"
    path = Path("/etc/hosts")
    kept = [line for line in path.read_text().splitlines() if not line.endswith(mark)]
    kept += [f"{address} {name} {mark}" for name, address in names.items()]
    path.write_text("\n".join(kept) + "\n")


def _run(*command: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _succeeds(*command: str, env: Mapping[str, str] | None = None) -> bool:
    done = subprocess.run(command, capture_output=True, check=False, env=env)
    return done.returncode == 0


def _wait_for(what: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {timeout_s:g} s; see {ROOT}/log")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["up", "down", "env"])
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default")
    args = parser.parse_args()
    cluster = Cluster(PROFILES[args.profile])
    if args.action == "up":
        install()
        cluster.up()
        print(cluster.run("sinfo"))
        print(f"export SLURM_CONF={cluster.conf}")
    elif args.action == "down":
        cluster.down()
    else:
        print(f"export SLURM_CONF={cluster.conf}")


if __name__ == "__main__":
    main()
