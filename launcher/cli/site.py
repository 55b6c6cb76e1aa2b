"""``hpc-llm site list|show|check|discover``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns, safe_text

if TYPE_CHECKING:
    from launcher.describe.site import Described
    from launcher.errors import Problem

__all__ = ["command"]


@click.group("site")
def command() -> None:
    """Know the clusters: list site files, show one, check one, discover this one."""


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


@command.command("discover", cls=AnswerCommand)
@click.option("--out", type=click.Path(path_type=Path), help="The new site file; else stdout.")
@click.option("--name", help="What the site is called; else as Slurm calls the cluster.")
@click.option("--probe", metavar="PARTITION", help="Ask a node of it, too, by a short job.")
@click.option("--account", help="Of that job.")
@click.option("--qos", help="Of that job.")
@click.option(
    "--from",
    "recorded",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read recorded outputs, and ask nobody.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    help="Record the outputs; with --probe in ./hpc-llm-discover unless this says otherwise.",
)
@click.option("--all", "with_cpus", is_flag=True, help="Nodes without GPUs, too.")
def discover(
    *,
    out: Path | None,
    name: str | None,
    probe: str | None,
    account: str | None,
    qos: str | None,
    recorded: Path | None,
    save: Path | None,
    with_cpus: bool,
) -> Answer:
    """Write a site file of this cluster, from what its commands say.

    What none of them says is left out, and listed with what would tell it. --probe runs a job of
    five minutes at most on one node, which tells of GPUs, links, network and disk.
    """
    from launcher import discover as cluster

    if recorded and (probe or save):
        raise click.UsageError("--from asks nobody: leave out --probe and --save")
    if out:
        cluster.check_free(out)
    found = cluster.captured(recorded) if recorded else cluster.ask_login_node()
    folder = save or (Path("hpc-llm-discover") if probe else None)
    if folder:
        cluster.save(found, folder)
    if probe and folder:
        what = cluster.Probe(partition=probe, account=account, qos=qos)
        cluster.probe(what, folder, say=lambda line: click.echo(safe_text(line), err=True))
        found = cluster.captured(folder)
    site = cluster.checked(found, name=name, with_cpus=with_cpus)
    if out:
        cluster.write(site.text, out)
    data = {
        "name": site.name,
        "path": str(out) if out else None,
        "site_file": site.text,
        "unknown": [{"keys": keys, "question": question} for keys, question in site.questions],
        "notes": list(site.notes),
    }
    return Answer(data=data, text=_summary(site, out) if out else site.text.rstrip("\n"))


def _summary(site: Described, out: Path) -> str:
    asked = [f"- {keys}: {question}" for keys, question in site.questions]
    noted = [f"- {note}" for note in site.notes]
    heads = (["not known, and what would tell it:"], asked), (["to be looked at:"], noted)
    return "\n".join([f"wrote {out}", *(line for head, of in heads if of for line in head + of)])
