"""A real Slurm cluster of several nodes on one Debian machine, for the tests.

Each node is a network, host-name and mount namespace with a slurmd of its own, so that hosts have
their own name, address and ``/tmp``; the controller, the accounting daemon and munge are the real
ones. GPUs are device files. Everything lives below one directory and is gone after `Cluster.down`.
Clusters of different profiles can be up at the same time.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGES", "PROFILES", "Cluster", "Profile", "install", "why_not"]

PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurmdbd", "slurm-wlm-mysql-plugin", "munge"),
    *("mariadb-server", "openmpi-bin", "libopenmpi-dev", "libpmix2", "iproute2"),
)
GPUS_PER_NODE = 8
CPUS_PER_NODE = 8
# What task/cgroup and proctrack/cgroup need, where cgroup.conf looks by default.
_CGROUPS, _CONTROLLERS = Path("/sys/fs/cgroup"), ("devices", "freezer")
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a cluster is configured, and what keeps it apart from the others on this machine.

    ``number`` is in the names of its network, in its addresses and in its controller's port;
    ``prefix`` begins the names of its hosts.
    """

    number: int
    prefix: str
    root: Path
    size: int
    accounting: bool = False
    cgroup: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}node0{i}" for i in range(1, self.size + 1))

    @property
    def controller(self) -> str:
        return f"{self.prefix}slctl"

    @property
    def port(self) -> int:
        return 6817 + 10 * self.number

    @property
    def bridge(self) -> str:
        return f"hlslbr{self.number}"

    def address(self, host: str) -> str:
        """The address of a node or of the controller, in a /24 of this profile."""
        last = 11 + self.nodes.index(host) if host in self.nodes else 1
        return f"10.89.{77 + self.number}.{last}"


_SRV = Path("/srv")
PROFILES: Mapping[str, Profile] = {
    "default": Profile(number=0, prefix="", root=_SRV / "hpc-llm-cluster", size=4, accounting=True),
    "no-accounting": Profile(
        number=1, prefix="na-", root=_SRV / "hpc-llm-cluster-no-accounting", size=2
    ),
    "cgroup": Profile(
        number=2, prefix="cg-", root=_SRV / "hpc-llm-cluster-cgroup", size=2, cgroup=True
    ),
}


def why_not(profile: Profile) -> str | None:
    """Why no cluster of ``profile`` can be had on this machine; None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the test cluster needs root on Linux"
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return "the test cluster needs Debian's Slurm packages"
    if not _succeeds("unshare", "--net", "--uts", "--mount", "true"):
        return "the test cluster needs namespaces"
    if profile.cgroup and not all((_CGROUPS / c / "cgroup.procs").exists() for c in _CONTROLLERS):
        return f"device limits need version 1 of {' and '.join(_CONTROLLERS)} below {_CGROUPS}"
    return None


def install() -> None:
    """Install Debian's packages unless they are there. No service of theirs is left running."""
    if all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "mpirun"))):
        return
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    _run("apt-get", "update", "-qq", env=environ)
    _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, env=environ)


class Cluster:
    """One cluster; `up` and `down` may be called in any state."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.root = profile.root
        self.conf = self.root / "etc" / "slurm.conf"
        self._daemons: list[int] = []

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
        for node in self.profile.nodes:
            self.start_node(node)
        self._wait_for("idle nodes", self._all_idle)

    def down(self) -> None:
        """Stop everything of this cluster and remove what it made outside its directory."""
        for node in self.profile.nodes:
            self.kill_node(node)
        _kill_all(self._daemon_pids)
        while self._daemons:
            os.waitpid(self._daemons.pop(), 0)
        for node in self.profile.nodes:
            _run("ip", "netns", "del", node, check=False)
            # Gone with the node, but not at once.
            _run("ip", "link", "del", self._link(node), check=False)
        _run("ip", "link", "del", self.profile.bridge, check=False)
        self._hosts({})
        for node in self.profile.nodes:
            for limits in _CGROUPS.glob(f"*/slurm_{node}"):
                for directory, _, _ in os.walk(limits, topdown=False):
                    Path(directory).rmdir()
        shutil.rmtree(self.root, ignore_errors=True)

    def is_up(self) -> bool:
        """Whether the controller answers; its nodes may be at work."""
        return self.conf.is_file() and "is UP" in self.run("scontrol", "ping", check=False)

    def start_controller(self) -> None:
        """slurmctld, under the host name that the configuration gives the controller."""
        script = f"hostname {self.profile.controller}; exec slurmctld -D -i"
        self._spawn("slurmctld", "unshare", "--uts", "sh", "-c", script)
        self._wait_for("slurmctld", self.is_up)

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
        command = ("ip", "netns", "pids", node)
        _kill_all(lambda: map(int, _run(*command, check=False).split()))

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split()
        return len(states) == self.profile.size and set(states) == {"idle"}

    def _spawn(self, name: str, *command: str) -> None:
        environ = self.environment({"PATH": os.environ["PATH"], "HPC_LLM_CLUSTER": str(self.root)})
        log = str(self.root / "log" / f"{name}.out")
        # No Popen: its daemon may outlive this process, of which it would warn.
        daemon = os.posix_spawnp(
            command[0],
            command,
            environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        self._daemons.append(daemon)

    def _wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        _wait_for(what, ready, self.root / "log")

    def _daemon_pids(self) -> Iterator[int]:
        """What was started by `_spawn`, and its children: all carry the cluster's mark."""
        mark = f"HPC_LLM_CLUSTER={self.root}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        yield int(entry.name)

    def _devices(self) -> None:
        directory = self.root / "dev"
        directory.mkdir(exist_ok=True)
        for i in range(GPUS_PER_NODE):
            # Each with numbers of its own, or a device cgroup cannot tell them apart. No driver
            # has them: opening one is ENXIO where it is let through, and else EPERM.
            os.mknod(directory / f"nvidia{i}", 0o20666, os.makedev(1, 200 + i))

    def _link(self, node: str) -> str:
        return f"hlsl{self.profile.number}-{self.profile.nodes.index(node)}"

    def _network(self) -> None:
        profile, bridge = self.profile, self.profile.bridge
        gateway = profile.address(profile.controller)
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{gateway}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for node in profile.nodes:
            link, inside = self._link(node), ("ip", "-n", node)
            _run("ip", "netns", "add", node)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", node)
            _run("ip", "link", "set", link, "master", bridge, "up")
            _run(*inside, "addr", "add", f"{profile.address(node)}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "route", "add", "default", "via", gateway)
        self._hosts({host: profile.address(host) for host in (profile.controller, *profile.nodes)})

    def _hosts(self, addresses: Mapping[str, str]) -> None:
        """Put hosts into /etc/hosts, in place of those of this profile's earlier cluster."""
        mark = f"# hpc-llm test cluster {self.profile.number}"
        path = Path("/etc/hosts")
        kept = [line for line in path.read_text().splitlines() if not line.endswith(mark)]
        kept += [f"{address} {host} {mark}" for host, address in addresses.items()]
        path.write_text("\n".join(kept) + "\n")

    def _configure(self) -> None:
        root, profile = self.root, self.profile
        controller, nodes = profile.controller, f"{profile.prefix}node0[1-{profile.size}]"
        accounting = (
            "AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost={controller}\nAccountingStorageTRES=gres/gpu\n"
            "AccountingStorageEnforce=associations\n"
            # The munge socket of the way to slurmdbd; AuthInfo is not used there.
            f"AccountingStoragePass={root}/run/munge.socket\n"
            "JobAcctGatherType=jobacct_gather/linux\n"
            if profile.accounting
            # What is over is forgotten at once, and nobody else knows of it.
            else "AccountingStorageType=accounting_storage/none\nMinJobAge=2\n"
        )
        plugins = (
            "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\n"
            if profile.cgroup
            else "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
        )
        self.conf.write_text(
            f"ClusterName=hpcllmtest\nSlurmctldPort={profile.port}\n"
            f"SlurmctldHost={controller}({profile.address(controller)})\n"
            "SlurmUser=root\nAuthType=auth/munge\nCredType=cred/munge\n"
            f"AuthInfo=socket={root}/run/munge.socket\n"
            f"StateSaveLocation={root}/state\nSlurmctldPidFile={root}/run/slurmctld.pid\n"
            f"SlurmdSpoolDir={root}/run/spool-%n\nSlurmdPidFile={root}/run/slurmd-%n.pid\n"
            f"SlurmctldLogFile={root}/log/slurmctld.log\nSlurmdLogFile={root}/log/slurmd-%n.log\n"
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\n"
            "MpiDefault=pmix\nGresTypes=gpu\nReturnToService=2\nSlurmdParameters=config_overrides\n"
            # Or a job of a part of a node would have all of its memory.
            "DefMemPerCPU=100\n"
            "SlurmdTimeout=10\nKillWait=5\nMessageTimeout=5\nMaxArraySize=101\n"
            "SchedulerParameters=sched_interval=2,bf_interval=2\n"
            f"{plugins}{accounting}"
            f"NodeName={nodes} CPUs={CPUS_PER_NODE} SocketsPerBoard=2 CoresPerSocket=4 "
            f"ThreadsPerCore=1 RealMemory=4000 Gres=gpu:h100:{GPUS_PER_NODE}\n"
            f"PartitionName=gpu Nodes={nodes} Default=YES MaxTime=02:00:00 State=UP\n"
        )
        (root / "etc/gres.conf").write_text(
            f"NodeName={nodes} Name=gpu Type=h100 File={root}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"
        )
        constrain = "ConstrainDevices=yes\n" if profile.cgroup else ""
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
        self._wait_for("munged", (run / "munge.socket").exists)

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
        self._wait_for("mariadb", lambda: _succeeds(*client, "SELECT 1"))
        _run(*client, sql)
        controller, conf = self.profile.controller, self.root / "etc/slurmdbd.conf"
        address = self.profile.address(controller)
        conf.write_text(
            f"DbdHost={controller}\nDbdAddr={address}\nSlurmUser=root\nAuthType=auth/munge\n"
            f"AuthInfo=socket={self.root}/run/munge.socket\n"
            f"PidFile={self.root}/run/slurmdbd.pid\nLogFile={self.root}/log/slurmdbd.log\n"
            "StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort=33779\n"
            "StorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm\n"
        )
        conf.chmod(0o600)
        script = f"hostname {controller}; exec slurmdbd -D"
        self._spawn("slurmdbd", "unshare", "--uts", "sh", "-c", script)
        self._wait_for("slurmdbd", lambda: _listens(address, 6819))
        cluster = ("sacctmgr", "-i", "add", "cluster", "hpcllmtest")
        self._wait_for("the accounting", lambda: _succeeds(*cluster, env=self.environment()))
        for what in (("account", "science"), ("user", "root", "account=science")):
            _run("sacctmgr", "-i", "add", *what, "cluster=hpcllmtest", env=self.environment())


def _listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


def _kill_all(pids: Callable[[], Iterable[int]]) -> None:
    """Kill ``pids()`` until there are none: what is being killed may have started more."""
    for _ in range(50):
        if not (found := list(pids())):
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _run(*command: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _succeeds(*command: str, env: Mapping[str, str] | None = None) -> bool:
    done = subprocess.run(command, capture_output=True, check=False, env=env)
    return done.returncode == 0


def _wait_for(what: str, ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after a minute; see {log}")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["up", "down", "env"])
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default")
    args = parser.parse_args()
    cluster = Cluster(PROFILES[args.profile])
    if args.action == "up":
        if (reason := why_not(cluster.profile)) is not None:
            sys.exit(reason)
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
