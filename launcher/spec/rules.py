"""What a job or site file may not say although each of its values is fine by itself.

Only rules that one file decides. What depends on the model, or on job and site together, is
for `launcher.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.sandbox import SandboxedEnvironment

from launcher.errors import Problem, SpecError
from launcher.spec.decode import decode
from launcher.spec.job import JobSpec, Runtime
from launcher.spec.site import EngineRuntime, SiteSpec
from launcher.spec.site_rules import check_partitions, check_scratch, repeated
from launcher.spec.source import Source, by_position, child, spoken

__all__ = ["check_job", "check_site", "holds_password", "read_job", "read_site"]

# Line breaks as Unicode counts them too: editors and terminals follow U+2028 and U+2029.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|CREDENTIALS)$", re.IGNORECASE
)
# user:password@ and the like, where an image's name may stand; enroot takes a user alone.
_PASSWORD = re.compile(r"^(?:\w+://)?[^/@]*:[^/@]*@(?!sha256:)")
# What the job script calls its own variables, and what bash keeps for itself (bash(1), "Shell
# Variables"). How patient the ranks are with a slow start is for the user to say.
_SCRIPTS_OWN = re.compile(
    r"HPC_LLM_(?!PATIENCE\Z).*|CUDA_VISIBLE_DEVICES|run|plan|job|restart|stat|entry|replicas?"
    r"|per_allocation|first|end|ended|pids|before|failed|died|resumable|again|signalled|code"
    r"|batch|warned|told|given_up|idle|cache|pause"
    r"|BASHOPTS|BASH_VERSINFO|EUID|IFS|PPID|SHELLOPTS|UID",
    re.DOTALL,
)
# What a scheduler or an MPI tells its processes, but not the knobs of Open MPI and PMIx. A site
# may have reasons to set these; a job has none.
_SCHEDULERS_OWN = re.compile(r"(?!OMPI_MCA_|PMIX_MCA_)(?:SLURM_|PMI|OMPI_).*", re.DOTALL)
# Options that the plan gives to sbatch, or that would undo what it gives, and the key of the job
# file for the same.
_PLANS_OWN = {
    "--account": "resources.account",
    "--array": "replicas",
    "--chdir": None,
    "--constraint": "resources.constraint",
    "--cpus-per-gpu": None,
    "--cpus-per-task": None,
    "--error": None,
    "--exclude": "resources.exclude",
    "--export": "env",
    "--gpu-bind": None,
    "--gpus-per-node": "resources.gpus_per_node",
    "--gpus-per-socket": "resources.gpus_per_node",
    "--gpus-per-task": "resources.gpus_per_node",
    "--gres": "resources.gpus_per_node",
    "--job-name": "name",
    "--no-requeue": None,
    "--nodes": "parallelism",
    "--ntasks-per-gpu": None,
    "--ntasks-per-node": "parallelism",
    "--open-mode": None,
    "--output": None,
    "--parsable": None,
    "--partition": "resources.partition",
    "--qos": "resources.qos",
    "--requeue": None,
    "--reservation": "resources.reservation",
    "--signal": "limits.warn_before",
    "--test-only": None,
    "--time": "resources.time",
    "--tres-per-task": None,
    "--wait": None,
    "--wrap": None,
}
# Slurm holds the lead of --signal in 16 bits (sbatch(1), "--signal").
_LONGEST_WARNING_S = 65535
# These go to the engine or the prompt as data, never to a directive or a path.
_FREE_TEXT = (
    "$.input.prompt",
    "$.input.messages",
    "$.output.keep",
    "$.sampling",
    "$.engine_options",
)
_MPI = {
    "srun": ("pmix", "pmi2", "cray_shasta", "none"),
    "mpirun": ("openmpi4", "openmpi5", "hydra", "intel"),
    "none": ("none",),
}
_TEMPLATES = SandboxedEnvironment()


def read_job(source: Source) -> JobSpec:
    """The job file in ``source``, checked.

    Raises
    ------
    SpecError
        Everything `launcher.spec.decode.decode` finds, else everything `check_job` finds.
    """
    job = decode(source, JobSpec)
    if problems := check_job(job, source):
        raise SpecError(problems)
    return job


def read_site(source: Source) -> SiteSpec:
    """The site file in ``source``, checked.

    Raises
    ------
    SpecError
        Everything `launcher.spec.decode.decode` finds, else everything `check_site` finds.
    """
    site = decode(source, SiteSpec)
    if problems := check_site(site, source):
        raise SpecError(problems)
    return site


def check_job(job: JobSpec, source: Source) -> list[Problem]:
    """All faults of a decoded job file, in the order of the file.

    ``spec.conflict``, ``spec.control-character``, ``spec.invalid``, ``spec.reserved-env``,
    ``spec.secret`` and ``spec.template``; none when the list is empty.
    """
    found = [
        *_control_characters(source),
        *_prompts(job, source),
        *_templates(job, source),
        *_two_runtimes(job.runtime, "$.runtime", source),
        *_password(job.runtime, "$.runtime", source),
        *_mounts(job.runtime, source),
        *_keep(job, source),
        *_secrets(job.env, source),
        *_reserved_names(job.env, source, _SCRIPTS_OWN, _SCHEDULERS_OWN),
        *_sbatch(job, source),
        *_warning(job, source),
    ]
    return by_position(found, source)


def check_site(site: SiteSpec, source: Source) -> list[Problem]:
    """All faults of a decoded site file, in the order of the file.

    ``spec.conflict``, ``spec.control-character``, ``spec.invalid``, ``spec.reserved-env`` and
    ``spec.secret``; none when the list is empty.
    """
    found = [
        *_control_characters(source),
        *_hostname(site, source),
        *_launch(site, source),
        *_engines(site, source),
        *check_scratch(site, source),
        *check_partitions(site, source),
    ]
    fabrics = {
        f"{child('$.partitions', name)}.fabric.env": partition.fabric.env
        for name, partition in site.partitions.items()
        if partition.fabric is not None
    }
    for at, env in {"$.env": site.env, **fabrics}.items():
        found += _secrets(env, source, at)
        found += _reserved_names(env, source, _SCRIPTS_OWN, at=at)
    return by_position(found, source)


def _control_characters(source: Source) -> Iterator[Problem]:
    for field, text, is_key in _strings(source.data, "$"):
        if field.startswith(_FREE_TEXT):
            continue
        # The script quotes a line break in an env value; nothing can quote a NUL.
        allowed = field.startswith("$.env") and not is_key
        found = re.search("\0", text) if allowed else _CONTROL.search(text)
        if found:
            where = source.key_at(field) if is_key else source.at(field)
            what = "the name" if is_key else "the value"
            message = f"{what} of {spoken(field)} holds the control character {found[0]!r}"
            yield Problem("spec.control-character", message, where, "delete the character")


def _strings(data: Any, at: str) -> Iterator[tuple[str, str, bool]]:
    if isinstance(data, str):
        yield at, data, False
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _strings(value, child(at, index))
    elif isinstance(data, dict):
        for key, value in data.items():
            yield child(at, key), key, True
            yield from _strings(value, child(at, key))


def _prompts(job: JobSpec, source: Source) -> Iterator[Problem]:
    if job.input.prompt is not None and job.input.messages is not None:
        message = "`input.prompt` and `input.messages` are both given"
        where = source.key_at("$.input.messages")
        yield Problem("spec.conflict", message, where, "delete one of them")
    for field, value in (
        ("$.input.path", job.input.path),
        ("$.input.messages", job.input.messages),
    ):
        if value == []:
            hint = "list at least one, or delete the key"
            yield Problem(
                "spec.invalid", f"{spoken(field)} is an empty list", source.at(field), hint
            )


def _templates(job: JobSpec, source: Source) -> Iterator[Problem]:
    texts = {"$.input.prompt": job.input.prompt or ""}
    for index, turn in enumerate(job.input.messages or ()):
        texts[f"$.input.messages[{index}].content"] = turn.content
    for field, text in texts.items():
        for line, fault in _template_faults(text):
            message = f"line {line} of the template {spoken(field)}: {fault}"
            hint = "write `{{ name }}` for a field of the row, and `{{ '{{' }}` for plain braces"
            yield Problem("spec.template", message, source.at(field), hint)


def _template_faults(text: str) -> Iterator[tuple[int, str]]:
    # Parsed, not compiled: compiling folds constants, and "a" * 10**10 is one.
    try:
        tree = _TEMPLATES.parse(text)
    except TemplateSyntaxError as exc:
        yield exc.lineno, str(exc.message).lower().rstrip(".")
    except (RecursionError, ValueError):
        yield 1, "it nests too deep, or holds a number that is too long"
    else:
        for node in tree.find_all(nodes.Filter):
            if node.name not in _TEMPLATES.filters:
                yield node.lineno, f"no filter is named {node.name!r}"


def _two_runtimes(runtime: Runtime | EngineRuntime, at: str, source: Source) -> Iterator[Problem]:
    if runtime.image is not None and runtime.venv is not None:
        message = f"{spoken(child(at, 'image'))} and {spoken(child(at, 'venv'))} are both given"
        where = source.key_at(child(at, "venv"))
        yield Problem("spec.conflict", message, where, "delete one of them")


def _password(runtime: Runtime | EngineRuntime, at: str, source: Source) -> Iterator[Problem]:
    if runtime.image is not None and holds_password(runtime.image):
        field = child(at, "image")
        message = f"{spoken(field)} holds a password, which would be in every script"
        hint = "leave it to the runtime's own files: see `hpc-llm explain container.secret`"
        yield Problem("spec.secret", message, source.at(field), hint)


def holds_password(image: str) -> bool:
    """Whether the name of an image holds the password of its registry.

    >>> holds_password("docker://me:secret@nvcr.io/a:1"), holds_password("a:1@sha256:0123")
    (True, False)
    """
    return _PASSWORD.search(image) is not None


def _mounts(runtime: Runtime, source: Source) -> Iterator[Problem]:
    for index, mount in enumerate(runtime.mounts):
        if "," in mount:
            message = f"a mount cannot hold a comma, which separates mounts: {mount!r}"
            where = source.at(f"$.runtime.mounts[{index}]")
            hint = "list each mount by itself, as DIRECTORY or OUTSIDE:INSIDE"
            yield Problem("spec.invalid", message, where, hint)


def _keep(job: JobSpec, source: Source) -> Iterator[Problem]:
    names = [] if isinstance(job.output.keep, str) else job.output.keep
    for index in repeated(names):
        message = f"`output.keep` names {names[index]!r} twice"
        where = source.at(f"$.output.keep[{index}]")
        yield Problem("spec.conflict", message, where, "delete one of them")


def _secrets(env: Iterable[str], source: Source, at: str = "$.env") -> Iterator[Problem]:
    for name in filter(_SECRET.search, env):
        message = f"`env` holds `{name}`, which looks like a secret and would be in every script"
        hint = "export it in the shell before submitting; it is inherited"
        yield Problem("spec.secret", message, source.key_at(child(at, name)), hint)


def _reserved_names(
    env: Iterable[str], source: Source, *reserved: re.Pattern[str], at: str = "$.env"
) -> Iterator[Problem]:
    for name in (name for name in env if any(r.fullmatch(name) for r in reserved)):
        message = f"`env` sets `{name}`, which the job script, the scheduler or bash sets itself"
        where = source.key_at(child(at, name))
        yield Problem("spec.reserved-env", message, where, "delete it")


def _warning(job: JobSpec, source: Source) -> Iterator[Problem]:
    if not 0 < job.limits.warn_before <= _LONGEST_WARNING_S:
        message = f"`limits.warn_before` is {int(job.limits.warn_before)} s, out of Slurm's range"
        where = source.at("$.limits.warn_before")
        yield Problem("spec.invalid", message, where, "choose from 1s to 18h")


def _sbatch(job: JobSpec, source: Source) -> Iterator[Problem]:
    for index, option in enumerate(job.resources.sbatch):
        name = option.partition("=")[0]
        # Slurm takes the beginning of an option for the option.
        own = next((own for own in _PLANS_OWN if own.startswith(name)), None)
        if own is not None:
            message = f"`resources.sbatch` gives {option}, which the plan decides"
            key = _PLANS_OWN[own]
            hint = f"set `{key}` instead" if key else "delete it"
            where = source.at(f"$.resources.sbatch[{index}]")
            yield Problem("spec.conflict", message, where, hint)


def _hostname(site: SiteSpec, source: Source) -> Iterator[Problem]:
    try:
        re.compile(site.detect.hostname or "")
    except (re.error, OverflowError, RecursionError) as exc:
        message = f"`detect.hostname` is no regular expression: {exc}"
        hint = "put a backslash before characters that are meant as they are"
        yield Problem("spec.invalid", message, source.at("$.detect.hostname"), hint)


def _launch(site: SiteSpec, source: Source) -> Iterator[Problem]:
    launcher, mpi = site.launch.with_, site.launch.mpi
    if site.scheduler.type == "local" and launcher == "srun":
        message = "`launch.with` is 'srun', which the scheduler 'local' does not have"
        hint = "set `launch.with` to 'none' or 'mpirun'"
        yield Problem("spec.conflict", message, source.at("$.launch.with"), hint)
    if mpi is not None and mpi not in _MPI[launcher]:
        message = f"`launch.mpi` is {mpi!r}, which does not go with {launcher!r}"
        hint = f"use {' or '.join(_MPI[launcher])}"
        yield Problem("spec.conflict", message, source.at("$.launch.mpi"), hint)


def _engines(site: SiteSpec, source: Source) -> Iterator[Problem]:
    for name, runtime in site.engines.items():
        at = child("$.engines", name)
        yield from _two_runtimes(runtime, at, source)
        yield from _password(runtime, at, source)
        if runtime.image is not None and site.container.runtime == "none":
            message = f"{spoken(child(at, 'image'))} is given, and `container.runtime` is 'none'"
            hint = "name the container runtime that starts it"
            yield Problem("spec.conflict", message, source.key_at(child(at, "image")), hint)
