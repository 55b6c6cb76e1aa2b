"""One real cluster for all tests of this directory, and what they do with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.cluster import Cluster
from cluster.user import User, running, somebody


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of the default profile.

    One that `make cluster-up` left running is used and kept.
    """
    with running("default") as found:
        yield found


@pytest.fixture
def shared(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """A directory of this test that every node sees."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:].strip("-")
    above = cluster.root / "shared"
    above.mkdir(exist_ok=True)
    # Tests of two modules may have one name.
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=above))
    path.chmod(0o755)
    return path


@pytest.fixture
def user(cluster: Cluster, shared: Path) -> Iterator[User]:
    with somebody(cluster, shared) as found:
        yield found
