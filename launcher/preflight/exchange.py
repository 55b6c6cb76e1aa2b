"""How the ranks of a replica tell the first one their facts, and hear what it makes of them.

By files of the run directory: they need no network to work, nor a port, and stay to be read.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.engines.meeting import MEET_S
from launcher.errors import Problem, RunError, Stopped
from launcher.plan.types import Plan
from launcher.preflight.facts import Facts, gather
from launcher.preflight.verdict import Finding, judge
from launcher.rundir import RunDir, publish

__all__ = ["Preflight", "Verdict"]

_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the first rank found.

    Attributes
    ----------
    ranks
        In their order.
    took_s
        From its own start to the last rank's word.
    """

    ranks: tuple[Facts, ...]
    findings: tuple[Finding, ...]
    took_s: float

    @property
    def problems(self) -> list[Problem]:
        return [finding.problem for finding in self.findings]

    @property
    def outcome(self) -> str:
        """How a step ends for these reasons."""
        return "died" if all(finding.mendable for finding in self.findings) else "failed"

    @property
    def hosts(self) -> list[str]:
        """The nodes to do without."""
        return sorted({host for finding in self.findings for host in finding.hosts})

    def summary(self, ranks: int) -> str:
        """One line for the log, of a replica of ``ranks`` that may go on."""
        nodes = [rank.node for rank in self.ranks if rank.node is not None]
        model_s = max(node.model_s for node in nodes)
        return (
            f"preflight: {ranks} rank{'s'[: ranks != 1]} on {len(nodes)} "
            f"node{'s'[: len(nodes) != 1]} agree in {self.took_s:.1f} s (model {model_s:.1f} s)"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "problems": [problem.to_json() for problem in self.problems],
            "hosts": self.hosts,
            "took_s": round(self.took_s, 3),
            "ranks": [dataclasses.asdict(rank) for rank in self.ranks],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The preflight of one step of a job."""

    run: RunDir
    plan: Plan
    job: str
    restart: int
    replica: int

    def judged(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> Verdict:
        """On the first rank: wait for the others' facts, and judge.

        Raises
        ------
        RunError
            ``run.rendezvous`` when one does not tell any in time.
        Stopped
            The run was told to stop.
        """
        began_s = time.monotonic()
        own = gather(self.plan, rank, local_rank, environ)
        given_up_s = time.monotonic() + MEET_S
        others = (self._awaited(self._facts_path(n), given_up_s, f"rank {n}") for n in self._later)
        ranks = (own, *map(Facts.from_json, others))
        digest = self.run.identity().model.digest
        findings = tuple(judge(self.plan, self.replica, ranks, digest))
        return Verdict(ranks=ranks, findings=findings, took_s=time.monotonic() - began_s)

    def announce(self, verdict: Verdict) -> None:
        """Let the others know."""
        publish(self._path, json.dumps(verdict.to_json()).encode())
        for rank in self._later:  # the verdict has them too
            self._facts_path(rank).unlink(missing_ok=True)

    def passed(self, rank: int, local_rank: int, environ: Mapping[str, str]) -> bool:
        """On a later rank: tell what is here, and hear whether to go on.

        Raises
        ------
        RunError
            ``run.rendezvous`` when the first rank says nothing in time.
        Stopped
            The run was told to stop.
        """
        facts = dataclasses.asdict(gather(self.plan, rank, local_rank, environ))
        publish(self._facts_path(rank), json.dumps(facts).encode())
        # The first rank waits as long for others, and begins later than this one by as much.
        heard = self._awaited(self._path, time.monotonic() + 2 * MEET_S, "rank 0")
        return not heard["problems"]

    @property
    def _later(self) -> range:
        return range(1, self.plan.step.tasks)

    @property
    def _path(self) -> Path:
        return self.run.preflight_path(self.job, self.restart, self.replica)

    def _facts_path(self, rank: int) -> Path:
        return self._path.with_suffix(f".r{rank}")

    def _awaited(self, path: Path, given_up_s: float, who: str) -> dict[str, Any]:
        while time.monotonic() < given_up_s:
            # Found by opening it, since a listing may be a minute old.
            with suppress(FileNotFoundError):
                found: dict[str, Any] = json.loads(path.read_bytes())
                return found
            if self.run.stop_path.exists():
                raise Stopped(Problem("run.stopped", "the run was told to stop"))
            time.sleep(_POLL_S)
        message = f"{who} said nothing in {path} within {MEET_S:.0f} s"
        hint = "is the run directory on a file system that all nodes share?"
        raise RunError(Problem("run.rendezvous", message, hint=hint))
