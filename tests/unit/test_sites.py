"""Which site a machine is taken for."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import sites
from launcher.errors import SpecError
from launcher.sites import choose_site, load_site

SITE = """
schema: 1
name: {name}
detect: {detect}
scheduler: {{type: slurm}}
launch: {{with: srun}}
partitions: {{gpu: {{}}}}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without Slurm's commands; the directory of the user's own site files."""
    folder = tmp_path / "config" / "site_configs"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HPC_LLM_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.delenv("HPC_LLM_SITE", raising=False)
    (tmp_path / "bin").mkdir()
    forget()
    yield folder
    forget()


def forget() -> None:
    """Slurm's configuration is asked for once a process."""
    for function in vars(sites).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def add(folder: Path, name: str, detect: str) -> None:
    (folder / f"{name}.yaml").write_text(SITE.format(name=name, detect=detect))


def command(folder: Path, name: str, text: str = "exit 0") -> None:
    path = folder.parent.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def here() -> str:
    return f'{{hostname: "^{re.escape(socket.getfqdn())}$"}}'.replace("\\", "\\\\")


def codes(caught: pytest.ExceptionInfo[SpecError]) -> list[str]:
    return [problem.code for problem in caught.value.problems]


def test_a_machine_without_slurm_is_local(own: Path) -> None:
    site = choose_site(None, partition=None)
    assert site.spec.name == "local"
    assert site.spec.scheduler.type == "local"


def test_a_job_that_names_a_partition_is_never_local(own: Path) -> None:
    with pytest.raises(SpecError) as caught:
        choose_site(None, partition="gpu")
    assert codes(caught) == ["site.undetected"]


def test_a_cluster_nobody_described_is_never_local(own: Path) -> None:
    command(own, "sbatch")
    (own.parent.parent / "slurm.conf").write_text("ClusterName=unknown\n")
    with pytest.raises(SpecError) as caught:
        choose_site(None, partition=None)
    assert codes(caught) == ["site.undetected"]


def test_a_host_name_is_recognised(own: Path) -> None:
    add(own, "mine", here())
    site = choose_site(None, partition="gpu")
    assert (site.spec.name, site.reason) == ("mine", "detected")


@pytest.mark.parametrize("line", ["ClusterName=alps", "clustername = alps", " ClusterName=alps #x"])
def test_a_cluster_is_recognised_by_its_configuration_file(own: Path, line: str) -> None:
    add(own, "mine", "{cluster_name: alps}")
    (own.parent.parent / "slurm.conf").write_text(f"# ClusterName=other\n{line}\nNodeName=n1\n")
    assert choose_site(None, partition=None).spec.name == "mine"


def test_a_cluster_without_a_file_is_asked_for_its_name(own: Path) -> None:
    add(own, "mine", "{cluster_name: alps}")
    command(own, "sbatch")
    command(own, "scontrol", 'echo "ClusterName             = alps"')
    assert choose_site(None, partition=None).spec.name == "mine"


def test_a_name_that_only_begins_alike_is_another_cluster(own: Path) -> None:
    add(own, "mine", "{cluster_name: alps}")
    (own.parent.parent / "slurm.conf").write_text("ClusterName=alps2\n")
    with pytest.raises(SpecError):
        choose_site(None, partition="gpu")


def test_two_sites_that_both_match_are_not_chosen_between(own: Path) -> None:
    add(own, "one", here())
    add(own, "two", here())
    with pytest.raises(SpecError) as caught:
        choose_site(None, partition=None)
    assert codes(caught) == ["site.undetected"]
    assert "one, two" in caught.value.problems[0].message


def test_a_named_site_wins_over_the_environment_and_that_over_detection(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(own, "mine", here())
    monkeypatch.setenv("HPC_LLM_SITE", "dgx-h100")
    assert choose_site(None, partition=None).spec.name == "dgx-h100"
    assert choose_site("local", partition=None).spec.name == "local"


@pytest.mark.parametrize(
    ("name", "code"),
    [("nosuch", "site.unknown"), ("./nosuch.yaml", "spec.unreadable"), ("/", "spec.unreadable")],
)
def test_a_site_that_is_not_there_is_an_error(own: Path, name: str, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_site(name, "--site")
    assert codes(caught) == [code]


def test_a_site_file_that_is_not_text_is_an_error(own: Path) -> None:
    (own / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError) as caught:
        load_site("bad", "--site")
    assert codes(caught) == ["spec.unreadable"]


def test_a_broken_site_file_is_named_while_sites_are_looked_for(own: Path) -> None:
    (own / "broken.yaml").write_text("name: [\n")
    with pytest.raises(SpecError) as caught:
        choose_site(None, partition=None)
    assert "broken.yaml" in str(caught.value)
