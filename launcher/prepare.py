"""From a job file to everything that is known before anything is written.

`prepare` reads the job, the site, the input's file list and the model's small files, and gives
the plan, the identity of the run and the text of every file of the run directory. It writes
nothing: ``plan``, ``render``, ``submit --dry-run`` and ``submit`` all begin here and so cannot
disagree.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from launcher import resources
from launcher.checkpoints import Checkpoint, FoundModel, find_model
from launcher.data.inputs import freeze, slow_starts
from launcher.data.sample import Sample, take_sample
from launcher.errors import Location, PlanError, Problem, SpecError
from launcher.inputcheck import InputReport, SampledPrompts, build_prompts, warning_of
from launcher.jobzip import build_zip
from launcher.models.shapes import ModelShape
from launcher.plan.capabilities import ENGINES
from launcher.plan.grid import make_grid
from launcher.plan.resolve import Facts, Resolution, resolve
from launcher.plan.types import InputFile, ModelRef, PromptSpec, RunIdentity, Sampling
from launcher.plan.workload import CHARACTERS_PER_TOKEN, UNKNOWN_PROMPTS, Prompts
from launcher.render.job import render_job
from launcher.rundir import RunDir
from launcher.sites import LoadedSite, choose_site
from launcher.spec.decode import decode
from launcher.spec.job import JobSpec
from launcher.spec.leaves import Text
from launcher.spec.rules import read_job
from launcher.spec.site import Partition, SiteSpec
from launcher.spec.source import Source, overlay, parse, with_setting

__all__ = [
    "Prepared",
    "image_arch",
    "job_and_site",
    "prepare",
    "run_directory",
    "run_directory_files",
]

_IMAGE_FILES = (".sif", ".sqsh", ".img")


class Defaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``defaults.yaml`` of a user: what would be the same in every job file."""

    account: Text | None = None
    partition: Text | None = None
    image: Text | None = None
    site: Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that can run: what it is, how it will be done, and where.

    Attributes
    ----------
    job_text
        The job file as it was read, for the run directory.
    shape
        Of the model; None where it is not known, or where there is none.
    report
        What the sample of the input looks like.
    warnings
        What deserves a look and stops nothing.
    """

    job: JobSpec
    job_text: str
    site: LoadedSite
    resolution: Resolution
    identity: RunIdentity
    run: RunDir
    shape: ModelShape | None
    report: InputReport
    warnings: tuple[Problem, ...]

    @property
    def partition_name(self) -> str:
        """Key of the site file: the job's, or the only one that there is."""
        return self.job.resources.partition or next(iter(self.site.spec.partitions))

    @property
    def partition(self) -> Partition:
        return self.site.spec.partitions[self.partition_name]


def prepare(
    job_file: Path,
    *,
    site: str | None = None,
    settings: Sequence[str] = (),
    limit: int | None = None,
    origin: Path | None = None,
    with_tokens: bool = False,
) -> Prepared:
    """Read, check and plan the job in ``job_file``.

    Parameters
    ----------
    site
        Name or path of a site file; None to detect it.
    settings
        ``key.path=value`` pairs that replace values of the job file.
    limit
        Only the first so many rows of the input, in a run directory of their own.
    origin
        Where relative paths start; None for the directory of ``job_file``.
    with_tokens
        Count the tokens of the sample for the report, not for the plan; this takes seconds.

    Raises
    ------
    SpecError
        A file is missing or wrong, with every problem of that file.
    PlanError
        The job cannot run on the site.
    """
    text = _read_text(job_file)
    base = origin or job_file.absolute().parent
    job, source, chosen = _read(str(job_file), text, base, site, settings)
    model = _model(job, base, source)
    inputs = _inputs(job, base, source.at("$.input.path"))
    sample = take_sample(inputs, limit)
    identity = _identity(job, inputs, model.checkpoint, sample.extent_bytes)
    prompts = _prompts(identity, sample, source)
    report = prompts.report()
    facts = dataclasses.replace(
        _facts(model, inputs, base, settings, report), image_archs=_image_archs(job, chosen.spec)
    )
    resolution = resolve(
        job, chosen.spec, job_source=source, site_source=chosen.source, facts=facts
    )
    run = _run_dir(job, base, source.at("$.output.path"), limit)
    _check_writable(run.path, chosen.spec, source.at("$.output.path"))
    return Prepared(
        job=job,
        job_text=text,
        site=chosen,
        resolution=resolution,
        identity=identity,
        run=run,
        shape=model.shape,
        report=prompts.counted(report) if with_tokens else report,
        warnings=(*resolution.warnings, *_input_warnings(prompts, report, source)),
    )


def job_and_site(job_file: Path, *, site: str | None = None) -> tuple[JobSpec, LoadedSite]:
    """A job file and its site, checked each for itself; raises SpecError as `prepare` does."""
    base = job_file.absolute().parent
    job, _, chosen = _read(str(job_file), _read_text(job_file), base, site, ())
    return job, chosen


def _read(
    name: str, text: str, base: Path, site: str | None, settings: Sequence[str]
) -> tuple[JobSpec, Source, LoadedSite]:
    source = parse(name, text)
    for setting in settings:
        source = with_setting(source, setting)
    source, default_site = _with_defaults(source)
    job = _with_absolute_runtime(read_job(source), base)
    return job, source, choose_site(site or default_site, partition=job.resources.partition)


def run_directory_files(prepared: Prepared, *, plan_number: str) -> dict[str, bytes]:
    """Every file of the run directory before its job starts, by its path in it."""
    plan = prepared.resolution.plan
    lib, archive = build_zip()
    texts = render_job(
        plan,
        plan_number=plan_number,
        run_dir=PurePosixPath(prepared.run.path),
        lib=lib,
        templates=resources.templates(),
    )
    texts["job.yaml"] = prepared.job_text
    texts["site.yaml"] = prepared.site.text
    texts["run.json"] = _run_json(prepared.identity)
    texts[f"plans/{plan_number}.json"] = _json(plan.to_json())
    return {**{name: text.encode() for name, text in texts.items()}, f"lib/{lib}": archive}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        problem = Problem("spec.unreadable", f"cannot read {path}: {reason}")
        raise SpecError(problem) from exc


def _with_defaults(source: Source) -> tuple[Source, str | None]:
    """The job over the user's ``defaults.yaml``, and the site named there."""
    places = (place / "defaults.yaml" for place in resources.config_directories())
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return source, None
    given = parse(str(path), _read_text(path))
    defaults = decode(given, Defaults)
    runtime = source.data.get("runtime")
    homes = {"account": "resources", "partition": "resources", "image": "runtime"}
    if isinstance(runtime, dict) and "venv" in runtime:
        del homes["image"]  # the job has chosen how it runs
    for key, home in homes.items():
        if getattr(defaults, key) is not None:
            source = overlay(source, _nested(given, key, home))
    return source, defaults.site


def _nested(given: Source, key: str, home: str) -> Source:
    """One value of ``given`` as a file that holds only ``home: {key: value}``."""
    where = given.at(f"$.{key}")
    places = dict.fromkeys(("$", f"$.{home}", f"$.{home}.{key}"), where)
    return Source(given.path, {home: {key: given.data[key]}}, places, places)


def _from(base: Path, text: str) -> Path:
    """A path as the job file writes it: relative to its directory, ``~`` for a home."""
    return base / os.path.expanduser(text)  # noqa: PTH111 - Path's raises without a home


def _with_absolute_runtime(job: JobSpec, base: Path) -> JobSpec:
    """Paths of ``runtime`` start at the job file; an image may also be a registry's name."""
    runtime = job.runtime
    image = runtime.image
    if image is not None and (image.endswith(_IMAGE_FILES) or _from(base, image).exists()):
        image = str(_from(base, image))
    return msgspec.structs.replace(
        job,
        runtime=msgspec.structs.replace(
            runtime,
            image=image,
            venv=str(_from(base, runtime.venv)) if runtime.venv else None,
            mounts=[str(_from(base, mount)) for mount in runtime.mounts],
        ),
    )


def _model(job: JobSpec, base: Path, source: Source) -> FoundModel:
    if not ENGINES[job.engine].needs_model:
        return FoundModel(checkpoint=None, shape=None)
    return find_model(job.model, base=base, where=source.at("$.model"))


def _inputs(job: JobSpec, base: Path, where: Location) -> tuple[InputFile, ...]:
    paths = [job.input.path] if isinstance(job.input.path, str) else job.input.path
    homed = [os.path.expanduser(path) for path in paths]  # noqa: PTH111 - as in `_from`
    # Never joined with `base`: in a directory called [1], that would be a part of the pattern.
    return freeze(homed, base=base, where=where, newlines=job.input.newlines)


def _reads(inputs: Sequence[InputFile], checkpoint: Checkpoint | None) -> set[str]:
    """The directories that hold input and model, and those that links in them lead to."""
    files = [entry.path for entry in inputs]
    if checkpoint is not None:
        files += map(str, checkpoint.path.iterdir())
        files += [f"{checkpoint.hub_cache}/"] if checkpoint.hub_cache else []
    # There may be 10^5 files: only links and directories are worth a walk to where they lead.
    links = (os.path.realpath(file) for file in files if os.path.islink(file))  # noqa: PTH114 - text
    homes = {os.path.dirname(file) for file in (*files, *links)}  # noqa: PTH120 - as above
    return homes | set(map(os.path.realpath, homes))


def _facts(
    model: FoundModel,
    inputs: Sequence[InputFile],
    base: Path,
    settings: Sequence[str],
    report: InputReport,
) -> Facts:
    checkpoint = model.checkpoint
    return Facts(
        shape=model.shape,
        model_path=str(checkpoint.path) if checkpoint else None,
        chat_template=checkpoint.chat_template if checkpoint else None,
        own_python=sys.executable,
        reads=tuple(sorted(_reads(inputs, checkpoint))),
        origin=str(base),
        settings=tuple(settings),
        prompts=_lengths(report),
    )


# Offset 45 of a SIF file has two digits for the CPUs that it is for (apptainer/sif,
# pkg/sif/sif.go, `header`, and arch.go).
_SIF_ARCHS = {b"02": "x86_64", b"04": "aarch64"}


def _image_archs(job: JobSpec, site: SiteSpec) -> dict[str, str]:
    """`image_arch` of the images that the job may run in, where they say."""
    of_site = site.engines.get(job.engine)
    images = filter(None, (job.runtime.image, of_site.image if of_site else None))
    return {image: arch for image in images if (arch := image_arch(image)) is not None}


def image_arch(image: str) -> str | None:
    """What an image says of the CPUs it is for, if it is a SIF file that can be read here."""
    try:
        with open(image, "rb") as file:  # noqa: PTH123 - a registry's name is no path
            head = file.read(48)
    except (OSError, ValueError):
        return None
    return _SIF_ARCHS.get(head[45:47]) if head[32:41] == b"SIF_MAGIC" else None


def _identity(
    job: JobSpec, inputs: tuple[InputFile, ...], checkpoint: Checkpoint | None, extent_bytes: int
) -> RunIdentity:
    prompt = PromptSpec(
        prompt=job.input.prompt,
        messages=tuple((m.role, m.content) for m in job.input.messages or ()),
        chat=job.input.chat,
        too_long=job.input.too_long,
    )
    return RunIdentity(
        name=job.name,
        model=ModelRef(
            name=job.model,
            path=str(checkpoint.path) if checkpoint else None,
            digest=checkpoint.digest if checkpoint else None,
        ),
        inputs=inputs,
        prompt=prompt,
        sampling=Sampling(
            **{**msgspec.structs.asdict(job.sampling), "stop": tuple(job.sampling.stop)}
        ),
        grid=make_grid(extent_bytes),
        keep=job.output.keep if isinstance(job.output.keep, str) else tuple(job.output.keep),
    )


def _lengths(report: InputReport) -> Prompts:
    if report.prompt_tokens is None or report.prompt_p95 is None:
        return UNKNOWN_PROMPTS
    return Prompts(
        mean=report.prompt_tokens.likely,
        p95=math.ceil(report.prompt_p95),
        most_new=report.largest_new_tokens or 1,
        rows=report.rows_estimate,
        source=f"a sample of {report.rows} rows, {CHARACTERS_PER_TOKEN} characters a token",
    )


def _prompts(identity: RunIdentity, sample: Sample, source: Source) -> SampledPrompts:
    """The prompts of the sample; what none of its rows can pass is an error."""
    if not sample.rows:
        hint = "point input.path at files with one row a line"
        problem = Problem("input.empty", "the input holds no rows", source.at("$.input.path"), hint)
        raise SpecError(problem)
    prompt = identity.prompt
    key = "prompt" if prompt.prompt is not None else "messages" if prompt.messages else "path"
    prompts = build_prompts(identity, sample, where=source.at(f"$.input.{key}"))
    problems = prompts.problems()
    if any(p.severity == "error" for p in problems):
        raise SpecError(problems)
    return prompts


def _input_warnings(
    prompts: SampledPrompts, report: InputReport, source: Source
) -> Iterator[Problem]:
    if (bad := warning_of(report, prompts.problems())) is not None:
        yield bad
    yield from slow_starts(prompts.identity.inputs, source.at("$.input.path"))


def _run_dir(job: JobSpec, base: Path, where: Location, limit: int | None) -> RunDir:
    path = _from(base, job.output.path)
    path = Path(*path.absolute().parts[:1], *_normal(path.absolute().parts[1:]))
    if limit is not None and path.name:
        path = path.with_name(f"{path.name}.first-{limit}")
    return run_directory(path, where)


def _check_writable(path: Path, site: SiteSpec, where: Location) -> None:
    """``plan.read-only`` where compute nodes cannot write what this node can."""
    places = {path, Path(os.path.realpath(path))}
    for named in site.scratch.read_only:
        root = os.path.expandvars(named)
        if any(p.is_relative_to(r) for p in places for r in (root, os.path.realpath(root))):
            message = f"compute nodes of site {site.name} only read {named}, and {path} is there"
            hint = "choose an output.path elsewhere, such as in your scratch directory"
            raise PlanError(Problem("plan.read-only", message, where, hint))


def run_directory(path: Path, where: Location | None = None) -> RunDir:
    """The run at the absolute ``path``, if scripts can name it.

    Raises
    ------
    PlanError
        ``plan.run-directory``.
    """
    if found := sorted(set(":,\\").intersection(str(path))):
        # PYTHONPATH is split at colons, container mounts at commas too, and a backslash makes
        # Slurm take `%j` in --output as it stands (sbatch(1), "filename pattern").
        message = f"a run directory cannot hold {' or '.join(map(repr, found))}: {path}"
        hint = "choose another output.path"
        raise PlanError(Problem("plan.run-directory", message, where, hint))
    if os.fsencode(path) != str(path).encode("utf-8", "replace"):
        message = f"the name of a run directory has to be UTF-8: {path}"
        hint = "choose another output.path"
        raise PlanError(Problem("plan.run-directory", message, where, hint))
    return RunDir(path)


def _normal(parts: Sequence[str]) -> list[str]:
    """``parts`` without ``..``, as text: the directory need not exist yet."""
    kept: list[str] = []
    for part in parts:
        if part == "..":
            del kept[-1:]
        else:
            kept.append(part)
    return kept


def _run_json(identity: RunIdentity) -> str:
    """``run.json``: each input file on one line, for there may be 10^5."""
    data = identity.to_json()
    files = ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in data.pop("inputs"))
    head = json.dumps(data, indent=2, ensure_ascii=False).removesuffix("\n}")
    return _utf8(f'{head},\n  "inputs": [\n    {files}\n  ]\n}}\n')


def _json(data: object) -> str:
    return _utf8(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _utf8(text: str) -> str:
    # A file name that is not UTF-8 holds lone surrogates, which JSON can only have escaped.
    return text.encode("utf-8", "backslashreplace").decode()
