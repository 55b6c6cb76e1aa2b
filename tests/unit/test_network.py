"""What NCCL's log says of the network, compared with the plan: over recorded lines."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_making import make_plan

from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Network, NodeGpus, Plan, Rail
from launcher.runner.network import Judge, NcclLog

RECORDED = Path(__file__).parents[1] / "fixtures" / "nccl"
EIGHT = tuple(Rail(hca=f"mlx5_{n}:1", gpus=(n,)) for n in range(8))
INFINIBAND = Network(type="infiniband", rails=EIGHT, ports=8)
SLINGSHOT = Network(type="slingshot", ports=4)


def plan(
    network: Network | None = INFINIBAND,
    *,
    domain: int | None = 8,
    env: dict[str, str] | None = None,
) -> Plan:
    layout = lay_out(Cut(tp=8, pp=2), 1, NodeShape(slots=8, slots_all=8, has_gpus=True))
    gpus = NodeGpus(count=8, domain=domain)
    return make_plan(layout=layout, gpus=gpus, network=network, env=env or {})


def judged(case: str, **how: Any) -> Judge:
    judge = Judge(plan(**how))
    for line in (RECORDED / f"{case}.log").read_text().splitlines():
        judge.hear(line)
    return judge


def warned(judge: Judge) -> list[str]:
    assert {p.code for p in judge.warnings} <= {"run.fabric"}
    assert all(p.hint and p.severity == "warning" for p in judge.warnings)
    return [p.message.partition(" (node")[0] for p in judge.warnings]


def test_eight_ports_of_infiniband_are_eight_rails_and_nothing_is_wrong() -> None:
    judge = judged("infiniband")
    assert (judge.network, warned(judge), judge.fatal) == ("InfiniBand, 8 rails", [], None)


def test_tcp_where_there_is_infiniband_is_fatal_unless_allowed() -> None:
    judge = judged("sockets")
    assert judge.fatal is not None
    assert (judge.fatal.code, judge.fatal.severity) == ("run.fabric", "error")
    assert "NCCL uses sockets (node " in judge.fatal.message
    assert "allow: [tcp-fallback]" in str(judge.fatal.hint)
    assert warned(judge) == ["NCCL finds no libibverbs, which InfiniBand needs"]
    allowed = judged("sockets", network=Network(type="infiniband", sockets=True))
    assert (allowed.fatal, allowed.network) == (None, "TCP on ibp5s0, ibp70s0")
    assert "NCCL uses TCP sockets through ibp5s0, ibp70s0" in warned(allowed)


def test_tcp_on_plain_ethernet_is_as_it_should_be() -> None:
    judge = judged("sockets", network=Network(type="ethernet"))
    assert (judge.network, warned(judge), judge.fatal) == ("TCP on ibp5s0, ibp70s0", [], None)


def test_tcp_in_place_of_another_fabric_is_a_warning() -> None:
    judge = judged("sockets", network=SLINGSHOT)
    assert judge.fatal is None
    assert warned(judge)[0] == "NCCL uses TCP sockets through ibp5s0, ibp70s0"


def test_a_plugin_is_named_as_nccl_names_it() -> None:
    judge = judged("slingshot", network=SLINGSHOT)
    assert (judge.network, warned(judge)) == ("AWS Libfabric", [])


@pytest.mark.parametrize("network", [INFINIBAND, Network(type="infiniband", ports=8)])
def test_roce_ports_among_infiniband_are_named(network: Network) -> None:
    (warning,) = warned(judged("roce-bond", network=network))
    assert "RoCE: mlx5_bond_0:1" in warning


def test_an_infiniband_port_that_is_no_rail_is_named_too() -> None:
    seven = Network(type="infiniband", rails=EIGHT[:7], ports=7)
    (warning,) = warned(judged("infiniband", network=seven))
    assert "mlx5_7:1" in warning


def test_rails_that_are_missing_are_named_or_counted() -> None:
    nine = (*EIGHT, Rail(hca="mlx5_8:1", gpus=(7,)))
    (named,) = warned(judged("infiniband", network=Network(type="infiniband", rails=nine, ports=9)))
    assert "mlx5_8:1" in named
    counted = judged("infiniband", network=Network(type="infiniband", ports=9))
    assert warned(counted) == ["NCCL uses 8 of 9 rails"]


def test_rails_that_a_site_names_without_their_port_are_counted() -> None:
    rails = tuple(Rail(hca=f"mlx5_{n}", gpus=(n,)) for n in range(8))
    judge = judged("infiniband", network=Network(type="infiniband", rails=rails, ports=8))
    assert (judge.network, warned(judge)) == ("InfiniBand, 8 rails", [])


def test_another_interface_than_the_sites_is_a_warning() -> None:
    judge = judged("infiniband", env={"NCCL_SOCKET_IFNAME": "ib"})
    assert warned(judge) == ["NCCL meets its peers on eno1, not ib"]


def test_host_memory_between_gpus_is_wrong_where_nvlink_joins_all_of_them() -> None:
    assert len(warned(judged("shared-memory"))) == 1
    assert len(warned(judged("shared-memory", network=None))) == 1
    assert warned(judged("shared-memory", domain=2)) == []
    assert warned(judged("shared-memory", domain=None)) == []


def test_on_one_node_the_network_is_nobodys_business() -> None:
    judge = judged("sockets", network=None)
    assert (judge.network, judge.warnings, judge.fatal) == (None, [], None)


# The pipe

WRITE = "import os, sys; open(os.environ['NCCL_DEBUG_FILE'], 'w').write(open(sys.argv[1]).read())"


def heard(
    case: str, folder: Path, environ: dict[str, str], *, first: bool = True, **how: Any
) -> tuple[NcclLog, Any]:
    """What a child that writes ``case`` as NCCL does leaves: the log, and the note of it."""
    note = folder / "note"
    with contextlib.closing(NcclLog(plan(**how), environ, note, first=first)) as log:
        words = [sys.executable, "-c", WRITE, str(RECORDED / f"{case}.log")]
        subprocess.run(words, env=environ, check=True)
    return log, json.loads(note.read_bytes()) if note.exists() else None


def test_good_lines_are_swallowed_and_what_they_told_is_noted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environ: dict[str, str] = {}
    _, note = heard("infiniband", tmp_path, environ)
    assert (note["network"], note["problems"]) == ("InfiniBand, 8 rails", [])
    assert capfd.readouterr().out == ""
    assert environ["NCCL_DEBUG"] == "INFO"
    assert not Path(environ["NCCL_DEBUG_FILE"]).parent.exists()


def test_a_later_rank_notes_nothing_where_all_is_well(tmp_path: Path) -> None:
    assert heard("infiniband", tmp_path, {}, first=False)[1] is None
    assert heard("roce-bond", tmp_path, {}, first=False)[1] is not None


def test_warnings_reach_the_log_nccls_own_too_and_the_step_is_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped: list[str] = []
    environ: dict[str, str] = {}
    with contextlib.closing(NcclLog(plan(), environ, tmp_path / "n", first=False)) as log:
        log.on_fatal(lambda: stopped.append("yes"))
        words = [sys.executable, "-c", WRITE, str(RECORDED / "sockets.log")]
        subprocess.run(words, env=environ, check=True)
    assert stopped == ["yes"]
    assert log.fatal is not None
    assert "NCCL WARN Failed to open libibverbs" in capfd.readouterr().out


def test_who_asked_for_nccls_log_gets_all_of_it_and_the_verdict(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environ = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "ALL"}
    _, note = heard("roce-bond", tmp_path, environ)
    assert len(note["problems"]) == 1
    out = capfd.readouterr().out
    assert (RECORDED / "roce-bond.log").read_text() in out
    assert "warning[run.fabric]" in out
    assert environ["NCCL_DEBUG_SUBSYS"] == "ALL"


def test_whoever_fails_on_a_line_the_pipe_is_read_on(tmp_path: Path) -> None:
    def fails(_: str) -> None:
        raise ValueError

    environ = {"NCCL_DEBUG": "INFO"}
    with contextlib.closing(NcclLog(plan(), environ, tmp_path / "n", first=True)) as log:
        log.also = fails
        many = "open(__import__('os').environ['NCCL_DEBUG_FILE'], 'w').write('line\\n' * 10**5)"
        subprocess.run([sys.executable, "-c", many], env=environ, check=True, timeout=60)


def test_a_file_that_the_user_chose_is_theirs(tmp_path: Path) -> None:
    environ = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(tmp_path / "own")}
    log, note = heard("sockets", tmp_path, environ)
    assert (log.fatal, note) == (None, None)
    assert (tmp_path / "own").exists()


@pytest.mark.parametrize("changes", [{"gpus": None}, {"layout": make_plan().layout}])
def test_where_nobody_talks_over_nccl_its_log_is_left_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    environ: dict[str, str] = {}
    fields = {name: getattr(plan(), name) for name in ("layout", "gpus", "network")}
    NcclLog(make_plan(**(fields | changes)), environ, tmp_path / "n", first=True).close()
    assert environ == {}


def test_without_a_place_for_the_pipe_the_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    environ: dict[str, str] = {}
    NcclLog(plan(), environ, tmp_path / "n", first=True).close()
    assert environ == {}
