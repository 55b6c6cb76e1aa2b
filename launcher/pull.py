"""Use case: bring a container image to one file that all nodes read, once and not in GPU time.

What the tools take and where they keep passwords is as in their manuals: apptainer's user guide
("Build a container", "Environment"), and ``doc/cmd/import.md`` of NVIDIA/enroot.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import PlanError, Problem, RunError, SchedulerError
from launcher.prepare import image_arch, job_and_site
from launcher.process import ProcessIds
from launcher.render.quoting import shell_value
from launcher.render.short_job import short_job
from launcher.schedulers.base import JobRef, JobState, Scheduler
from launcher.schedulers.registry import scheduler_for
from launcher.sites import LoadedSite, choose_site
from launcher.spec.rules import holds_password
from launcher.spec.site import SiteSpec
from launcher.turns import held

__all__ = ["Pulled", "Wanted", "pull", "pull_by_job", "wanted"]

Relay = Callable[[bytes], object]

_FILES = {"apptainer": ".sif", "pyxis": ".sqsh"}
_CHUNK_BYTES = 65536
_KEPT_BYTES = 1 << 16
_FULL = re.compile(rb"(?i)no space left on device|disk quota exceeded")
_LOOK_S = 0.5
# A job that finds the image, or has just made it, is over in seconds.
_END_S = 2.0
_REGISTRY = re.compile(r"^(?P<host>[^/#]+[.:][^/#]*|localhost)[/#](?P<path>.+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An image, and the file that it is to be.

    Attributes
    ----------
    image
        As the runtime's tool takes it.
    engine
        The one that is in it, for the site file.
    archs
        CPUs of the nodes that it may be meant for; none where nobody says.
    account
        That the job names.
    """

    image: str
    out: Path
    engine: str
    site: LoadedSite
    archs: frozenset[str]
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where an image is. ``how``: ``pulled``, or ``there`` before."""

    path: Path
    how: str


def wanted(
    source: str,
    *,
    site: str | None = None,
    out: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Wanted:
    """What to pull, and to where.

    Parameters
    ----------
    source
        An image, or a job file, whose image it is then.
    out
        The file; else it is named after the image, in ``$HPC_LLM_IMAGES`` or beside an image that
        the site file names.

    Raises
    ------
    SpecError
        What is wrong in a job or site file.
    PlanError
        ``container.no-image``, ``container.no-place``, ``container.none``, ``container.secret``.
    """
    named = _named(source, site)
    image, spec = named.image, named.site.spec
    if holds_password(image):
        message = "the name of the image holds a password, which would get into logs"
        hint = "leave it to the runtime's own files: see `hpc-llm explain container.secret`"
        raise PlanError(Problem("container.secret", message, hint=hint))
    if Path(image).is_file():
        return replace(named, out=Path(image).absolute())
    if image.startswith("/") or (image.endswith((".sif", ".sqsh")) and "://" not in image):
        message = f"there is no image at {image}, and no name of one to pull"
        hint = "name it, as in docker://nvcr.io/nvidia/tensorrt-llm/release:1.2.0, with --out FILE"
        raise PlanError(Problem("container.no-image", message, hint=hint))
    if spec.container.runtime == "none":
        message = f"site {spec.name} starts no containers"
        hint = "set container.runtime in the site file, or choose another --site"
        raise PlanError(Problem("container.none", message, hint=hint))
    place = (out or _place(image, spec, named.engine, environ)).expanduser().absolute()
    return replace(named, image=_spelled(image, spec), out=place)


def _named(source: str, site: str | None) -> Wanted:
    """The image that is meant, as it is named, with no place yet."""
    if not source.endswith((".yaml", ".yml")):
        chosen = choose_site(site, partition=None)
        engine = "vllm" if "vllm" in source else "tensorrt-llm"
        archs = _archs(chosen.spec, None)
        return Wanted(image=source, out=Path(), engine=engine, site=chosen, archs=archs)
    job, chosen = job_and_site(Path(source), site=site)
    of_site = chosen.spec.engines.get(job.engine)
    image = job.runtime.image or (of_site.image if of_site else None)
    if image is None:
        message = f"{source} names no image, and neither does site {chosen.spec.name}"
        raise PlanError(Problem("container.no-image", message, hint="name the image itself"))
    return Wanted(
        image=image,
        out=Path(),
        engine=job.engine,
        site=chosen,
        archs=_archs(chosen.spec, job.resources.partition),
        account=job.resources.account,
    )


def _archs(site: SiteSpec, partition: str | None) -> frozenset[str]:
    """CPUs of the job's partition, or of all that have GPUs; nothing if one does not say."""
    named = site.partitions.get(partition or "")
    nodes = [named] if named else [p for p in site.partitions.values() if p.gpus is not None]
    archs = [p.cpus.arch if p.cpus else None for p in nodes]
    return frozenset() if None in archs else frozenset(filter(None, archs))


def _spelled(image: str, site: SiteSpec) -> str:
    """``image`` as the site's tool wants it: enroot has # after a registry, apptainer a slash."""
    scheme, _, name = image.rpartition("://")
    if scheme not in ("", "docker"):
        return image
    mark = "#" if site.container.runtime == "pyxis" else "/"
    if found := _REGISTRY.match(name):
        name = f"{found['host']}{mark}{found['path']}"
    return f"docker://{name}"


def _place(image: str, site: SiteSpec, engine: str, environ: Mapping[str, str]) -> Path:
    name = image.rpartition("://")[2]
    found = _REGISTRY.match(name)
    # As enroot calls its files.
    stem = re.sub(r"[^\w.+-]", "+", found["path"] if found else name)
    return _directory(site, engine, environ) / f"{stem}{_FILES[site.container.runtime]}"


def _directory(site: SiteSpec, engine: str, environ: Mapping[str, str]) -> Path:
    if own := environ.get("HPC_LLM_IMAGES"):
        return Path(own)
    first = [entry for name, entry in site.engines.items() if name == engine]
    for entry in (*first, *site.engines.values()):
        if entry.image and entry.image.startswith("/"):
            return Path(entry.image).parent
    message = f"site {site.name} does not say where images are kept"
    hint = "give --out FILE, or set HPC_LLM_IMAGES to a directory that all nodes see"
    raise PlanError(Problem("container.no-place", message, hint=hint))


def pull(what: Wanted, *, relay: Relay, say: Callable[[str], object]) -> Pulled:
    """Have the image, by the site's container runtime on this machine.

    Parameters
    ----------
    relay
        Takes the tool's output as it comes.
    say
        Takes a line for whoever waits.

    Raises
    ------
    PlanError
        ``plan.image-architecture``, ``container.busy``, ``container.no-tool``,
        ``container.unwritable``.
    RunError
        ``container.failed``, ``container.no-space``.
    """
    if what.out.is_file():
        _check_arch(what, image_arch(str(what.out)))
        return Pulled(what.out, "there")
    _check_arch(what, _machine(), hint=f"pull it there: --partition of nodes with {_list(what)}")
    tool = _tool(what.site.spec)
    try:
        what.out.parent.mkdir(parents=True, exist_ok=True)
        with held(what.out.with_name(f".{what.out.name}.pulling"), _Waiting(what.out, say)):
            if what.out.is_file():  # whoever was waited for has it
                return Pulled(what.out, "there")
            _pull(what, tool, relay)
    except OSError as exc:
        message = f"cannot write {exc.filename or what.out.parent}: {exc.strerror}"
        hint = "choose a file where you may write with --out"
        raise PlanError(Problem("container.unwritable", message, hint=hint)) from exc
    return Pulled(what.out, "pulled")


class _Waiting:
    """Says once who is waited for, if it can be told here when that one ends."""

    def __init__(self, out: Path, say: Callable[[str], object]) -> None:
        self._out, self._say, self._said = out, say, False

    def __call__(self, path: Path, owner: ProcessIds | None) -> None:
        if owner is None or self._said:
            return
        who = f"process {owner.pid} on {owner.host}"
        if owner.elsewhere():
            message = f"{who} is pulling {self._out}"
            hint = f"wait for it; if it was killed, delete {path}"
            raise PlanError(Problem("container.busy", message, hint=hint))
        self._say(f"{who} is pulling {self._out}: waiting for it")
        self._said = True


def _machine() -> str:
    return {"arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _list(what: Wanted) -> str:
    return " or ".join(sorted(what.archs))


def _check_arch(what: Wanted, arch: str | None, *, hint: str | None = None) -> None:
    if arch is None or not what.archs or arch in what.archs:
        return
    message = f"{what.out} is, or would be, for {arch}, and the nodes have {_list(what)}"
    hint = hint or "delete it, and pull it on such a node: --partition"
    raise PlanError(Problem("plan.image-architecture", message, hint=hint))


def _tool(site: SiteSpec) -> str:
    name = "enroot" if site.container.runtime == "pyxis" else site.container.command
    if (found := shutil.which(name)) is not None:
        return found
    message = f"`{name}` is not on PATH of {platform.node()}"
    hint = "load its module first, or pull on nodes that have it: --partition"
    raise PlanError(Problem("container.no-tool", message, hint=hint))


def _pull(what: Wanted, tool: str, relay: Relay) -> None:
    """Under another name first: a file with the right one is whole."""
    # Both tools go by the ending. What a pull that was killed has left is in the way of enroot.
    scratch = what.out.with_name(f".pulling.{what.out.name}")
    scratch.unlink(missing_ok=True)
    enroot = what.site.spec.container.runtime == "pyxis"
    words = ("import", "-o", str(scratch)) if enroot else ("build", str(scratch))
    try:
        code, said = _run((tool, *words, what.image), relay)
        if code or not scratch.is_file():
            raise RunError(_failure(what, Path(tool).name, code, said))
        _check_arch(what, image_arch(str(scratch)))
        scratch.rename(what.out)
    finally:
        scratch.unlink(missing_ok=True)


def _run(words: Sequence[str], relay: Relay) -> tuple[int, bytes]:
    """Its exit code, and the end of what it has printed."""
    said = b""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None  # noqa: S101 - as it was opened
        try:
            while chunk := os.read(process.stdout.fileno(), _CHUNK_BYTES):
                relay(chunk)
                said = (said + chunk)[-_KEPT_BYTES:]
        except BaseException:  # Ctrl-C
            process.kill()
            raise
    return process.returncode, said


def _failure(what: Wanted, tool: str, code: int, said: bytes) -> Problem:
    last = _last_line(said)
    if _FULL.search(said):
        kinds = ("ENROOT_CACHE_PATH", "ENROOT_TEMP_PATH")
        names = kinds if tool == "enroot" else ("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR")
        free_gib = shutil.disk_usage(what.out.parent).free / (1 << 30)
        message = (
            f"no room for the image ({free_gib:.0f} GiB are free in {what.out.parent}): {last}"
        )
        hint = f"make room, or have {names[0]} and {names[1]} name places with more of it"
        return Problem("container.no-space", message, hint=hint)
    message = f"`{tool}` returned {code} for {what.image}: {last}"
    hint = "see what it printed; a registry's password belongs into the runtime's own files"
    return Problem("container.failed", message, hint=hint)


def _last_line(said: bytes) -> str:
    lines = re.split(r"[\r\n]+", said.decode(errors="replace").strip())
    return lines[-1].strip()


def pull_by_job(
    what: Wanted, partition: str, *, time_s: int, account: str | None, relay: Relay
) -> Pulled:
    """Have it pulled by a job of one node of ``partition``, and wait for its end.

    Raises
    ------
    PlanError
        ``container.no-partition``, ``container.unwritable``, ``plan.image-architecture``.
    RunError
        ``container.failed``.
    SchedulerError
        The scheduler refused.
    """
    there = what.site.spec.partitions.get(partition)
    if there is None or what.site.spec.scheduler.type != "slurm":
        names = ", ".join(what.site.spec.partitions)
        message = f"site {what.site.spec.name} has no partition {partition!r} that takes jobs"
        hint = f"choose one of {names}, or leave --partition out"
        raise PlanError(Problem("container.no-partition", message, hint=hint))
    if what.out.is_file():
        _check_arch(what, image_arch(str(what.out)))
        return Pulled(what.out, "there")
    _check_arch(what, there.cpus.arch if there.cpus else None, hint="choose nodes like those")
    who = f"{platform.node()}.{os.getpid()}"
    folder = what.out.parent / f".pulling.{what.out.name}.{who}"  # another one may ask too
    log = folder / "log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        script = folder / "script.sh"
        script.write_text(_script(what, partition, log, time_s, account or what.account))
    except OSError as exc:
        message = f"cannot write {exc.filename or folder}: {exc.strerror}"
        raise PlanError(
            Problem("container.unwritable", message, hint="choose another --out")
        ) from exc
    scheduler = scheduler_for(what.site.spec.scheduler.type)
    job = scheduler.submit(script, f"pull.{os.getpid()}")
    relay(f"job {job.id} on {partition} pulls it; log: {log}\n".encode())
    said = _follow(scheduler, job, log, what.out, relay)
    if not what.out.is_file():
        last = _last_line(said) or "it printed nothing"
        message = f"job {job.id} has not pulled {what.image}: {last}"
        raise RunError(Problem("container.failed", message, hint=f"see {log}"))
    shutil.rmtree(folder, ignore_errors=True)
    return Pulled(what.out, "pulled")


def _script(what: Wanted, partition: str, log: Path, time_s: int, account: str | None) -> str:
    words = (sys.executable, "-m", "launcher", "container", "pull", what.image)
    where = ("--out", str(what.out), "--site", what.site.source.path)
    return short_job(
        {"--partition": partition, "--account": account},
        ["exec " + " ".join(map(shell_value, (*words, *where)))],
        log=log,
        time_s=time_s,
        reject=what.site.spec.scheduler.reject,
    )


def _live(scheduler: Scheduler, job: JobRef, *, there: bool) -> bool:
    """Whether ``job`` goes on; one that waits for what is ``there`` already does not."""
    try:
        state = scheduler.states([job])[job.id]
        if there and state is JobState.QUEUED:
            scheduler.cancel([job])
    except SchedulerError:
        if there:  # what was wanted is had
            return False
        raise
    return state.live


def _follow(scheduler: Scheduler, job: JobRef, log: Path, out: Path, relay: Relay) -> bytes:
    """Pass on the log of ``job`` until that is over; the end of the log.

    One that still waits when ``out`` is there, by another's hand, is withdrawn.
    """
    said, place, asked_s, live = b"", 0, -math.inf, True
    while live:
        there = out.is_file()
        if time.monotonic() - asked_s >= (_END_S if there else scheduler.poll_s):
            live, asked_s = _live(scheduler, job, there=there), time.monotonic()
        with log.open("rb") as file:
            file.seek(place)
            chunk = file.read()
        place += len(chunk)
        if chunk:
            relay(chunk)
        said = (said + chunk)[-_KEPT_BYTES:]
        if live:
            time.sleep(_LOOK_S)
    return said
