"""What a cluster says of itself: on its login node, and in a short job on one of its nodes."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from launcher.describe.captures import LOGIN, ON_NODE
from launcher.describe.site import Described, describe
from launcher.errors import PlanError, Problem, RunError
from launcher.render.quoting import shell_value
from launcher.render.short_job import short_job
from launcher.resources import builtin
from launcher.schedulers.base import JobRef, JobState, Scheduler, clean_environment
from launcher.schedulers.registry import scheduler_for
from launcher.spec.rules import read_site
from launcher.spec.site import Partition
from launcher.spec.source import parse

__all__ = [
    "Captured",
    "Probe",
    "ask_login_node",
    "captured",
    "check_free",
    "checked",
    "probe",
    "save",
    "write",
]

_ANSWER_S = 60.0
_PROBE_S = 300
_LOOK_S = 0.5
_NODE = "node-"  # directories with the captures of one node begin so
_DONE = "done"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Captured:
    """Outputs by the names of their files: of the login node, and of each node."""

    login: Mapping[str, str]
    nodes: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A job of one node: where it runs, and in whose name."""

    partition: str
    account: str | None = None
    qos: str | None = None


def ask_login_node(
    environ: Mapping[str, str] = os.environ, *, timeout_s: float = _ANSWER_S
) -> Captured:
    """Run all commands of a login node, at the same time; the output of what fails is empty.

    Raises
    ------
    PlanError
        ``site.no-slurm``: none of them is here.
    """
    clean = clean_environment(environ) | {"LC_ALL": "C"}
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda words: _answer(words, clean, timeout_s), LOGIN.values())
        found = dict(zip(LOGIN, answers, strict=True))
    if not any(text for name, text in found.items() if name.startswith(("scontrol", "sinfo"))):
        hint = "run it on a login node of the cluster, or on its recorded outputs with --from DIR"
        message = "neither `scontrol` nor `sinfo` tells of a cluster here"
        raise PlanError(Problem("site.no-slurm", message, hint=hint))
    return Captured(found)


def _answer(words: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> str:
    """What it printed. `srun --mpi=list` tells on stderr, `type -P` fails if one is missing."""
    command = [word.format(user=getpass.getuser()) for word in words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=environ,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    told = done.stdout or (done.stderr if words[-1] == "--mpi=list" else b"")
    failed = done.returncode != 0 and words[0] != "bash"
    return "" if failed else told.decode(errors="replace")


def save(found: Captured, folder: Path) -> None:
    """Record the outputs of the login node in ``folder``, empty ones too, over older ones.

    Raises
    ------
    PlanError
        ``site.unwritable``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in found.login.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise _unwritable(exc, folder) from exc


def captured(folder: Path) -> Captured:
    """Outputs that were recorded in ``folder``.

    Raises
    ------
    PlanError
        ``site.no-captures``: it has no file with a name that is known.
    """
    nodes = tuple(_files(place, ON_NODE) for place in sorted(folder.glob(f"{_NODE}*")))
    found = Captured(_files(folder, LOGIN), nodes)
    if not found.login and not any(nodes):
        message = f"{folder} has no recorded output, such as {' or '.join([*LOGIN][:3])}"
        hint = "record them with --save DIR on a login node, or by hand under these names"
        raise PlanError(Problem("site.no-captures", message, hint=hint))
    return found


def _files(folder: Path, names: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    paths = {name: folder / name for name in names}
    return {
        name: path.read_bytes()[:_MOST_BYTES].decode(errors="replace")
        for name, path in paths.items()
        if path.is_file()
    }


def checked(found: Captured, *, name: str | None, with_cpus: bool) -> Described:
    """The site file of what was captured, as the program would read it.

    Raises
    ------
    SpecError
        It would not: the name is none, for instance.
    """
    described = describe(found.login, found.nodes, name=name, with_cpus=with_cpus)
    read_site(parse("the discovered site file", described.text))
    return described


def write(text: str, out: Path) -> None:
    """Write a new file.

    Raises
    ------
    PlanError
        ``site.exists``, ``site.unwritable``.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as exc:
        raise _exists(out) from exc
    except OSError as exc:
        raise _unwritable(exc, out) from exc


def check_free(out: Path) -> None:
    """Before anybody waits for a job: nothing is there yet.

    Raises
    ------
    PlanError
        ``site.exists``.
    """
    if os.path.lexists(out):
        raise _exists(out)


def probe(what: Probe, folder: Path, *, say: Callable[[str], object]) -> None:
    """Have a job of five minutes at most record the outputs of one node below ``folder``.

    Parameters
    ----------
    folder
        Holds those of the login node; all nodes see it.
    say
        Takes a line for whoever waits.

    Raises
    ------
    PlanError
        ``site.unwritable``.
    RunError
        ``site.probe-failed``: the job is over, and has not told all.
    SchedulerError
        The scheduler refused.
    """
    place = folder.absolute() / f"{_NODE}{re.sub(r'[^A-Za-z0-9_.-]', '-', what.partition)}"
    done = place / _DONE
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in (_DONE, *ON_NODE):
            (place / name).unlink(missing_ok=True)
        script = place / "script.sh"
        script.write_text(_script(what, captured(folder), place))
    except OSError as exc:
        raise _unwritable(exc, place) from exc
    scheduler = scheduler_for("slurm")
    job = scheduler.submit(script, f"discover.{os.getpid()}")
    try:
        say(f"job {job.id} asks a node of {what.partition}")
        _wait(scheduler, job, done, say)
    except KeyboardInterrupt:
        again = f"hpc-llm site discover --from {shell_value(folder)}"
        say(f"job {job.id} stays queued (scancel {job.id} ends it); when it is over: {again}")
        raise
    if not done.exists():
        message = f"job {job.id} on {what.partition} is over, and has not told all of its node"
        hint = f"see {place / 'log'}; what it has told is used by --from {folder}"
        raise RunError(Problem("site.probe-failed", message, hint=hint))


def _wait(scheduler: Scheduler, job: JobRef, done: Path, say: Callable[[str], object]) -> None:
    """Until it is done or over. What has changed since is said."""
    said, ask_s = "", 0.0
    while not done.exists():
        if time.monotonic() >= ask_s:
            state = scheduler.states([job])[job.id]
            why = scheduler.reasons([job]).get(job.id) if state is JobState.QUEUED else None
            line = f"job {job.id} is {state.value}" + (f": {why}" if why else "")
            if line != said:
                say(line)
            if not state.live:
                # What the node wrote may come late over the network.
                time.sleep(_LOOK_S)
                return
            said, ask_s = line, time.monotonic() + scheduler.poll_s
        time.sleep(_LOOK_S)


def _script(what: Probe, found: Captured, place: Path) -> str:
    options = {**_asked(what, found), "--account": what.account}
    settings = {"place": str(place), "partition": options["--partition"] or ""}
    settings["login_tmpdir"] = os.environ.get("TMPDIR", "")
    given = [f"{name}={shell_value(value)}" for name, value in settings.items()]
    body = builtin("templates").joinpath("slurm", "probe.sh").read_text(encoding="utf-8")
    return short_job(options, [*given, body], log=place / "log", time_s=_PROBE_S)


def _asked(what: Probe, found: Captured) -> dict[str, str | None]:
    """Partition, QoS and all GPUs of a node there; the whole node where they are not known.

    ``what.partition`` is a name of Slurm's, or a key of the site file for one kind of its nodes.
    """
    described = describe(found.login)
    site = read_site(parse("the discovered site file", described.text))
    keys = (*described.partitions.get(what.partition, ()), what.partition)
    partition = next((site.partitions[key] for key in keys if key in site.partitions), Partition())
    select, gpus = partition.select, partition.gpus
    options = {
        "--partition": select.partition or what.partition,
        "--constraint": select.constraint,
        "--qos": what.qos or select.qos,
    }
    if gpus is None or gpus.request is None:
        return {**options, "--exclusive": ""}
    option, _, value = gpus.request.partition("=")
    return {**options, option: value.replace("{n}", str(gpus.per_node))}


def _exists(out: Path) -> PlanError:
    message, hint = f"{out} is there already", "name another file with --out"
    return PlanError(Problem("site.exists", message, hint=hint))


def _unwritable(exc: OSError, place: Path) -> PlanError:
    message = f"cannot write {exc.filename or place}: {exc.strerror}"
    return PlanError(Problem("site.unwritable", message, hint="name a place where you may write"))
