"""One real cluster for all tests of this directory, and what they do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.cluster import PROFILES, Cluster, install, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of the default profile.

    One that `make cluster-up` left running is used and kept.
    """
    found = Cluster(PROFILES["default"])
    if found.is_up():
        yield found
        return
    if (reason := why_not(PROFILES["default"])) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    install()
    found.up()
    yield found
    found.down()


@pytest.fixture
def shared(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """A directory of this test that every node sees."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:].strip("-")
    path = cluster.root / "shared" / f"{name}-{os.getpid()}"
    path.mkdir(parents=True)
    return path
