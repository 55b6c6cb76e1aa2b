"""How the ranks of a replica tell the first one what they found, and hear what it makes of that.

By files of the run directory: they need no network to work, nor a port, and stay to be read. There
are two rounds: what the nodes have, and how fast the links between their ranks are.
"""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.engines.meeting import MEET_S
from launcher.errors import Problem, RunError, Stopped
from launcher.plan.types import Plan
from launcher.preflight.facts import Facts, gather
from launcher.preflight.probe import probe
from launcher.preflight.speeds import Fault, Link, Told, merge
from launcher.preflight.verdict import Finding, judge, judge_links
from launcher.rundir import RunDir, publish

__all__ = ["Preflight", "Round", "Verdict"]

_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the first rank found in a round.

    Attributes
    ----------
    findings
        What is wrong; the replica may go on where all of them are warnings.
    summary
        One line for the log of a replica that may go on.
    told
        All that it goes by, for whoever reads its file.
    """

    findings: tuple[Finding, ...]
    summary: str
    told: Mapping[str, Any]

    @property
    def problems(self) -> list[Problem]:
        return [finding.problem for finding in self._fatal]

    @property
    def warnings(self) -> list[Problem]:
        return [f.problem for f in self.findings if f.problem.severity == "warning"]

    @property
    def outcome(self) -> str:
        """How a step ends for its problems."""
        return "died" if all(finding.mendable for finding in self._fatal) else "failed"

    @property
    def hosts(self) -> list[str]:
        """The nodes to do without."""
        return sorted({host for finding in self._fatal for host in finding.hosts})

    @property
    def _fatal(self) -> list[Finding]:
        return [f for f in self.findings if f.problem.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        return {
            "problems": [problem.to_json() for problem in self.problems],
            "hosts": self.hosts,
            "findings": [
                {**f.problem.to_json(), "hosts": f.hosts, "part": f.part} for f in self.findings
            ],
            **self.told,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The preflight of one step of a job."""

    run: RunDir
    plan: Plan
    job: str
    restart: int
    replica: int

    def rounds(self) -> Iterator[Round]:
        """One after another, as long as they find nothing."""
        step = (self.job, self.restart, self.replica)
        nodes = _NodeRound(self, self.run.preflight_path(*step), "r")
        yield nodes
        if self.plan.links:
            yield _LinkRound(self, self.run.links_path(*step), "l", nodes)


class Round(ABC):
    """One question to all ranks, and the first one's verdict.

    Parameters
    ----------
    path
        The verdict's file; beside it each later rank puts what it has to tell.
    letter
        In the names of those files.
    """

    def __init__(self, flight: Preflight, path: Path, letter: str) -> None:
        self.flight, self.path = flight, path
        self._letter = letter

    @abstractmethod
    def look(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> dict[str, Any]:
        """What this rank has to tell, as JSON."""

    @abstractmethod
    def judge(self, told: Sequence[dict[str, Any]], began_s: float) -> Verdict:
        """What is to be made of what the ranks told, in their order, since ``began_s``."""

    def judged(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> Verdict:
        """On the first rank: look, wait for what the others tell, and judge.

        Raises
        ------
        RunError
            ``run.rendezvous`` when one does not tell any in time.
        Stopped
            The run was told to stop.
        """
        began_s = time.monotonic()
        own = self.look(rank, local_rank, environ)
        given_up_s = time.monotonic() + MEET_S
        others = [self._awaited(self._told(n), given_up_s, f"rank {n}") for n in self._later]
        return self.judge([own, *others], began_s)

    def announce(self, verdict: Verdict) -> None:
        """Let the others know."""
        publish(self.path, json.dumps(verdict.to_json()).encode())
        for rank in self._later:  # the verdict has them too
            self._told(rank).unlink(missing_ok=True)

    def passed(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> bool:
        """On a later rank: tell what is here, and hear whether to go on.

        Raises
        ------
        RunError
            ``run.rendezvous`` when the first rank says nothing in time.
        Stopped
            The run was told to stop.
        """
        told = self.look(rank, local_rank, environ)
        publish(self._told(rank), json.dumps(told).encode())
        # The first rank waits as long for others, and begins later than this one by as much.
        heard = self._awaited(self.path, time.monotonic() + 2 * MEET_S, "rank 0")
        return not heard["problems"]

    @property
    def _later(self) -> range:
        return range(1, self.flight.plan.step.tasks)

    def _told(self, rank: int) -> Path:
        return self.path.with_suffix(f".{self._letter}{rank}")

    def _awaited(self, path: Path, given_up_s: float, who: str) -> dict[str, Any]:
        while time.monotonic() < given_up_s:
            # Found by opening it, since a listing may be a minute old.
            with suppress(FileNotFoundError):
                found: dict[str, Any] = json.loads(path.read_bytes())
                return found
            if self.flight.run.stop_path.exists():
                raise Stopped(Problem("run.stopped", "the run was told to stop"))
            time.sleep(_POLL_S)
        message = f"{who} said nothing in {path} within {MEET_S:.0f} s"
        hint = "is the run directory on a file system that all nodes share?"
        raise RunError(Problem("run.rendezvous", message, hint=hint))


class _NodeRound(Round):
    ranks: tuple[Facts, ...] = ()

    def look(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> dict[str, Any]:
        return dataclasses.asdict(gather(self.flight.plan, rank, local_rank, environ))

    def judge(self, told: Sequence[dict[str, Any]], began_s: float) -> Verdict:
        flight = self.flight
        self.ranks = ranks = tuple(map(Facts.from_json, told))
        digest = flight.run.identity().model.digest
        findings = tuple(judge(flight.plan, flight.replica, ranks, digest))
        count, took_s = flight.plan.layout.cut.ranks, time.monotonic() - began_s
        nodes = [rank.node for rank in ranks if rank.node is not None]
        model_s = max(node.model_s for node in nodes)
        summary = (
            f"preflight: {count} rank{'s'[: count != 1]} on {len(nodes)} "
            f"node{'s'[: len(nodes) != 1]} agree in {took_s:.1f} s (model {model_s:.1f} s)"
        )
        return Verdict(
            findings=findings,
            summary=summary,
            told={"took_s": round(took_s, 3), "ranks": list(told)},
        )


class _LinkRound(Round):
    def __init__(self, flight: Preflight, path: Path, letter: str, nodes: _NodeRound) -> None:
        super().__init__(flight, path, letter)
        self._nodes = nodes

    def look(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG002 - as other rounds
        flight = self.flight
        ranks = flight.plan.task(flight.replica, rank)
        meeting = self.path.with_suffix(".links-at")
        told = probe(flight.plan, ranks, environ, meeting, flight.run.stop_path)
        return dataclasses.asdict(told)

    def judge(self, told: Sequence[dict[str, Any]], began_s: float) -> Verdict:
        plan, every = self.flight.plan, list(map(Told.from_json, told))
        links = merge([link for one in every for link in one.links])
        faults = [fault for one in every for fault in one.faults]
        hosts = [rank.host for rank in self._nodes.ranks if rank.node is not None]
        findings = tuple(judge_links(plan, links, faults, hosts))
        took_s = time.monotonic() - began_s
        return Verdict(
            findings=findings or _unmeasured(faults),
            summary=_said(links, took_s),
            told={
                "took_s": round(took_s, 3),
                "nodes": hosts,
                "links": [dataclasses.asdict(link) for link in links],
                "faults": [dataclasses.asdict(fault) for fault in faults],
            },
        )

    def announce(self, verdict: Verdict) -> None:
        super().announce(verdict)
        for name in (".links-at", ".links-off"):
            self.path.with_suffix(name).unlink(missing_ok=True)


def _said(links: Sequence[Link], took_s: float) -> str:
    if not links:
        return f"preflight: no link was measured in {took_s:.1f} s"
    worst = min(link.bytes_per_s for link in links) / 1e9
    return f"preflight: {len(links)} links have {worst:.2f} GB/s and more, in {took_s:.1f} s"


def _unmeasured(faults: Sequence[Fault]) -> tuple[Finding, ...]:
    if not faults:
        return ()
    first = faults[0]
    more = f", and of {len(faults) - 1} more ranks" if len(faults) > 1 else ""
    message = f"links of rank {first.rank} on {first.host} were not measured{more}: {first.error}"
    hint = "set limits.preflight: quick if this job's image has no torch that reaches the others"
    problem = Problem("preflight.unmeasured", message, hint=hint, severity="warning")
    return (Finding(problem, hosts=(), mendable=False),)
