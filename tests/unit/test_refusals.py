"""What made sbatch refuse."""

from __future__ import annotations

import pytest

from launcher.schedulers.refusals import cause_of


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("sbatch: error: invalid partition specified: nope", "resources.partition"),
        (
            "Batch job submission failed: Invalid account or account/partition combination",
            "resources.account",
        ),
        ("Batch job submission failed: Invalid qos specification", "resources.qos"),
        ("Batch job submission failed: Requested time limit is invalid", "resources.time"),
        ("Batch job submission failed: Requested node configuration is not available", "tp, pp"),
        ("Batch job submission failed: Invalid job array specification", "replicas"),
        ("Batch job submission failed: Invalid feature specification", "resources.constraint"),
        ("Batch job submission failed: Invalid --segment specification", "topology.nodes"),
        ("Batch job submission failed: Invalid node name specified", "resources.exclude"),
        ("Batch job submission failed: Invalid generic resource (gres) specification", "request"),
    ],
)
def test_the_key_that_caused_it_is_named(text: str, key: str) -> None:
    assert key in str(cause_of(text))


def test_what_is_not_known_is_not_guessed() -> None:
    assert cause_of("sbatch: error: the moon is full") is None
