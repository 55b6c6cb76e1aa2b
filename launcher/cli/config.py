"""``hpc-llm config paths``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

__all__ = ["command"]


@click.group("config")
def command() -> None:
    """Know where files are looked for."""


@command.command("paths", cls=AnswerCommand)
def paths() -> Answer:
    """List the places of site files, templates, defaults, models and runs."""
    from launcher import resources

    searched = {
        kind: [str(place) for place in resources.search_path(kind)]
        for kind in ("site_configs", "templates")
    }
    defaults = [str(place / "defaults.yaml") for place in resources.config_directories()]
    single = {
        "models": [str(resources.model_cache())],
        "runs": [str(resources.state_home() / "runs")],
    }
    data = {**searched, "defaults": defaults, **single}
    rows = [
        (kind if i == 0 else "", p) for kind, found in data.items() for i, p in enumerate(found)
    ]
    return Answer(data=data, text=columns(rows))
