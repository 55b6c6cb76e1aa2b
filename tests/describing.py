"""Site files out of the sets of captures in `tests/fixtures/sites`, which are synthetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.describe.site import Described, describe
from launcher.discover import Captured, captured
from launcher.spec.rules import read_site
from launcher.spec.site import SiteSpec
from launcher.spec.source import parse

__all__ = ["ROOT", "SETS", "changed", "found", "of_set"]

ROOT = Path(__file__).resolve().parents[1]
SETS = sorted((ROOT / "tests/fixtures/sites").glob("*/"))


def found(captures: Captured, **more: Any) -> tuple[Described, SiteSpec]:
    described = describe(captures.login, captures.nodes, **more)
    return described, read_site(parse("found.yaml", described.text))


def of_set(name: str) -> Captured:
    return captured(ROOT / "tests/fixtures/sites" / name)


def changed(captures: Captured, name: str, old: str, new: str) -> Captured:
    assert old in captures.login[name]
    return Captured(
        {**captures.login, name: captures.login[name].replace(old, new)}, captures.nodes
    )
