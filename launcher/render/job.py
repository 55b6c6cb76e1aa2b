"""A plan to the files of a run that people read: ``script.sh`` and the engine's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from launcher.plan.types import Plan
from launcher.render.engine import render_template
from launcher.render.quoting import Raw, shell_path, shell_value
from launcher.render.step import CACHES, step_words
from launcher.render.tensorrt_llm import engine_file

__all__ = ["render_job"]


def render_job(
    plan: Plan,
    *,
    plan_number: str,
    run_dir: PurePosixPath,
    lib: str,
    templates: Mapping[str, str],
) -> dict[str, str]:
    """The text files of a run, by their path below ``run_dir``.

    Parameters
    ----------
    plan_number
        Name of the plan below ``plans/``, such as ``0001``.
    run_dir
        Absolute path of the run directory on the compute nodes.
    lib
        File name of the in-job zip below ``lib/``.
    templates
        Every template by its path, such as ``slurm/script.sh.j2``.

    Raises
    ------
    RenderError
        ``template.broken`` when a template and the plan disagree.
    """
    allocation = plan.layout.allocation
    words = " \\\n    ".join(shell_value(word) for word in step_words(plan, run_dir))
    context = {
        "directives": plan.directives,
        "log_pattern": _log_pattern(run_dir, array=allocation.count > 1),
        "run_dir": run_dir,
        "plan_number": plan_number,
        "env": [(Raw(name), value) for name, value in plan.env.items()],
        "scratch": shell_path(plan.scratch) if plan.scratch else None,
        "caches": [(Raw(name), Raw(place)) for name, place in CACHES.items()],
        "exclude": dict(plan.directives).get("--exclude"),
        "modules": plan.runtime.modules,
        "venv": plan.runtime.venv,
        "in_image": plan.runtime.image is not None,
        "lib": lib,
        "step_words": Raw(words),
        "launcher": plan.launcher,
        "leads": plan.step.kind == "leader",
        "requeues": plan.attempts if plan.restart == "requeue" else None,
        "chained": plan.restart == "chain",
        "spare_nodes": plan.spare_nodes,
        "replicas": plan.layout.replicas,
        "replicas_per_allocation": allocation.replicas,
    }
    files = {"script.sh": render_template(f"{plan.scheduler}/script.sh.j2", templates, context)}
    if plan.engine == "tensorrt-llm":
        files[f"plans/{plan_number}.engine.yaml"] = engine_file(plan)
    return files


def _log_pattern(run_dir: PurePosixPath, *, array: bool) -> str:
    """``--output`` of the batch script; ``%`` starts a replacement symbol there (sbatch(1))."""
    return f"{run_dir}/logs/".replace("%", "%%") + ("%A_%a.log" if array else "%j.log")
