"""``hpc-llm site list|show|check``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

__all__ = ["command"]


@click.group("site")
def command() -> None:
    """Know the clusters: list site files, show one, check one."""


@command.command("list", cls=AnswerCommand)
def list_sites() -> Answer:
    """List every site file there is, and which one counts for each name."""
    from launcher.resources import site_names

    sites = {name: str(entry) for name, entry in site_names().items()}
    return Answer(data={"sites": sites}, text=columns(list(sites.items())))


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
