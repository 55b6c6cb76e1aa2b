"""Site files out of any cluster there may be, and out of whatever its commands print."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

import pytest
from describing import SETS, found, of_set
from hypothesis import given
from hypothesis import strategies as st

from launcher.discover import Captured
from launcher.parsers.slurm_values import read_gres

GRES = ["gpu:4", "gpu:8", "gpu:h100:4", "gpu:h100:8", "gpu:a100:4", "gpu:h100:2,gpu:a100:2"]
MORE = ["(null)", "gpu:a100:4,gpu:a100_1g.5gb:7", "gpu:a100_1g.5gb:28", "gpu:h100:2,gpu:h100:2"]
ALIKE = st.tuples(
    st.sampled_from(GRES + MORE),
    st.frozensets(st.sampled_from(["h100", "a100", "sxm", "rome", "80gb"])),
    st.sampled_from(["IDLE", "DOWN*", "MIXED+DRAIN"]),
    st.frozensets(st.sampled_from(["gpu", "all"]), min_size=1),
)


@given(st.lists(ALIKE, min_size=1, max_size=6))
def test_each_node_that_a_request_may_be_given_has_the_gpus_that_the_file_states(
    nodes: list[tuple[str, frozenset[str], str, frozenset[str]]],
) -> None:
    text = "".join(
        f"NodeName=n{number} Arch=x86_64 CoresPerSocket=8\n   CPUTot=16\n"
        f"   AvailableFeatures={','.join(features) or '(null)'}\n   Gres={gres}\n"
        f"   RealMemory=64000 Sockets=2\n   State={state} ThreadsPerCore=1\n"
        f"   Partitions={','.join(partitions)}\n\n"
        for number, (gres, features, state, partitions) in enumerate(nodes)
    )
    both = "PartitionName=gpu\n   State=UP\n\nPartitionName=all\n   State=UP\n\n"
    login = {"scontrol-node.txt": text, "scontrol-partition.txt": both}
    for key, partition in found(Captured(login))[1].partitions.items():
        if partition.gpus is None:
            continue
        assert partition.gpus.request is not None
        type_ = partition.gpus.request.removeprefix("--gres=gpu:").removesuffix("{n}").rstrip(":")
        name, constraint = partition.select.partition or key, partition.select.constraint
        for gres, features, _, partitions in nodes:
            held = [one for one in read_gres(gres) if type_ in ("", one.type)]
            if name not in partitions or (constraint or "") not in {"", *features} or not held:
                continue
            assert not any(one.mig for one in read_gres(gres))
            assert sum(one.count for one in held) == partition.gpus.per_node
            assert {one.type for one in held} == {type_ or None}


HOSTILE = [
    "a\x1b[31mb",
    "x: y #z",
    "{n}",
    "'\"",
    "*&!|>%@`",
    "\x00\x85 ",
    "none",
    "true",
    "0x1F",
    "e\u202e9",
    "🦀",
]


@given(st.data())
def test_a_discovered_file_always_passes_the_check(data: st.DataObject) -> None:
    whole = of_set(data.draw(st.sampled_from([path.name for path in SETS])))
    rng = random.Random(data.draw(st.integers(0, 2**32)))

    def broken(files: Mapping[str, str]) -> dict[str, str]:
        return {name: _broken(text, rng) for name, text in files.items() if rng.random() > 0.1}

    described, site = found(Captured(broken(whole.login), tuple(map(broken, whole.nodes))))
    assert site.name == described.name
    assert all(line.isprintable() for line in described.text.splitlines())


def _broken(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice([0, 0, 1, 3, 10])):
        at = rng.randrange(len(lines)) if lines else 0
        kind = rng.randrange(5)
        if not lines or kind == 0:
            return text[: rng.randrange(len(text) + 1)]
        words = re.findall(r"[A-Za-z0-9_.]+|[^A-Za-z0-9_.]+", lines[at]) or [""]
        if kind == 1:
            del lines[at]
        elif kind == 2:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            new = rng.choice([*HOSTILE, str(rng.randrange(10**6)), "0", "UNLIMITED"])
            words[rng.randrange(len(words))] = new
            lines[at] = "".join(words)
    return "".join(lines)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_yaml_or_a_terminal_would_take_for_something_else_are_quoted(name: str) -> None:
    login = {
        **of_set("tamia").login,
        "scontrol-config.txt": f"ClusterName = {name}\nGresTypes = gpu\n",
        "scontrol-partition.txt": f"PartitionName={name}\n   AllowQos={name}\n   Nodes=tg10101\n",
    }
    described, site = found(Captured(login))
    assert all(line.isprintable() for line in described.text.splitlines())
    # Escapes that colour a terminal are taken off before anything is read.
    plain = name.replace("\x1b[31m", "").strip()
    assert site.detect.cluster_name == (plain if plain.isprintable() and plain != "none" else None)
