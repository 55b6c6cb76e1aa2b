"""What planning starts from, and what it collects on its way: problems and decisions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.errors import Location, PlanError, Problem
from launcher.models.shapes import ModelShape
from launcher.plan.workload import UNKNOWN_PROMPTS, Prompts
from launcher.spec.job import JobSpec
from launcher.spec.site import SiteSpec
from launcher.spec.source import Source, child

__all__ = ["Decision", "Facts", "Resolver", "field_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What had to be looked up before planning.

    Attributes
    ----------
    shape
        The model's shape, or None when neither a checkpoint nor the catalogue tells.
    model_path
        Directory of the checkpoint, or None when there is none here.
    chat_template
        Whether the checkpoint has a chat template; None without a checkpoint.
    own_python
        The interpreter that plans: what jobs of the local scheduler run under by default.
    origin, settings
        Where relative paths of the job file start, and what ``--set`` changed in it.
    reads
        Directories that the job reads input and model from, links followed and not.
    image_archs
        Of images that are files here and say so: the CPUs that they are for.
    prompts
        What a sample of the input tells.
    """

    shape: ModelShape | None = None
    model_path: str | None = None
    chat_template: bool | None = None
    own_python: str | None = None
    reads: tuple[str, ...] = ()
    origin: str = "/"
    settings: tuple[str, ...] = ()
    image_archs: Mapping[str, str] = field(default_factory=dict)
    prompts: Prompts = UNKNOWN_PROMPTS


@dataclass(frozen=True, slots=True)
class Decision:
    """One value of the plan and where it came from, for ``plan --explain``."""

    key: str
    value: str
    source: str


@dataclass
class Resolver:
    """Collects problems and decisions while a plan is put together."""

    job: JobSpec
    site: SiteSpec
    job_source: Source
    site_source: Source
    facts: Facts
    problems: list[Problem] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def error(self, code: str, message: str, *path: str, hint: str | None = None) -> None:
        self.problems.append(Problem(code, message, self.job_source.at(field_path(*path)), hint))

    def warn(self, code: str, message: str, *path: str, hint: str | None = None) -> None:
        where = self.job_source.at(field_path(*path))
        self.problems.append(Problem(code, message, where, hint, "warning"))

    def stop_on_errors(self) -> None:
        if any(p.severity == "error" for p in self.problems):
            raise PlanError(self.problems)

    def decide(self, key: str, value: object, source: Location | str | None) -> None:
        text = f"{source.path}:{source.line}" if isinstance(source, Location) else source
        self.decisions.append(Decision(key, str(value), text or "default"))

    def from_job(self, key: str, value: object) -> None:
        """Note a value of the job file, or its default."""
        self.decide(key, value, self.mark(key))

    def from_site(self, key: str, value: object, why: str = "") -> None:
        """Note a value of the site file."""
        self.decide(key, value, f"site {self.site.name}" + (f": {why}" if why else ""))

    def mark(self, key: str) -> Location | None:
        """Where the job file says ``key``, if it does."""
        return self.job_source.marks.get(field_path(*key.split(".")))


def field_path(*keys: str) -> str:
    """The path of a field of a file, as `Source` knows it."""
    return functools.reduce(child, keys, "$")
