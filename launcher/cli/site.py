"""``hpc-llm site list|show|check``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

if TYPE_CHECKING:
    from launcher.errors import Problem

__all__ = ["command"]


@click.group("site")
def command() -> None:
    """Know the clusters: list site files, show one, check one."""


@command.command("list", cls=AnswerCommand)
def list_sites() -> Answer:
    """List every site there is: its GPUs and network, whether a run has ended there, its file."""
    from launcher.errors import SpecError
    from launcher.resources import site_names
    from launcher.runs import ran_sites, site_digest
    from launcher.sites import load_site, outline

    ran = ran_sites()
    sites: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, entry in site_names().items():
        try:
            site = load_site(name, "listed")
        except SpecError as exc:
            problems += [dataclasses.replace(p, severity="warning") for p in exc.problems]
            nodes, has_run = "unreadable", False
        else:
            nodes, has_run = outline(site.spec), site_digest(site.text) in ran
        sites[name] = {"path": str(entry), "nodes": nodes, "ran": has_run}
    lines = [
        (name, site["nodes"], "run" if site["ran"] else "never run", site["path"])
        for name, site in sites.items()
    ]
    return Answer(data={"sites": sites}, text=columns(lines), problems=problems)


@command.command("show", cls=AnswerCommand)
@click.argument("name", required=False)
def show(name: str | None) -> Answer:
    """Print the site file NAME, or the one that counts on this machine."""
    from launcher.sites import choose_site

    site = choose_site(name, partition=None)
    data = {"name": site.spec.name, "path": site.source.path, "chosen_by": site.reason}
    head = f"# {site.source.path} ({site.reason})\n"
    return Answer(data={**data, "site": site.source.data}, text=head + site.text.rstrip("\n"))


@command.command("check", cls=AnswerCommand)
@click.argument("site")
def check(site: str) -> Answer:
    """Check SITE, a name or a file, and report every problem in it."""
    from launcher.sites import load_site

    loaded = load_site(site, "named")
    data = {"name": loaded.spec.name, "path": loaded.source.path}
    return Answer(data=data, text=f"{loaded.source.path}: no problems")
