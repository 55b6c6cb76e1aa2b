"""Write the table of vLLM's engine options anew, from the sources of some of its versions.

``python -m benchmarks.vllm_options WHEEL…`` prints what the end of
`launcher.plan.vllm_options` holds. Each WHEEL is a file as pip downloads it
(``pip download --no-deps vllm==0.24.0``); nothing of it is imported.
"""

from __future__ import annotations

import ast
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

_SOURCE = "vllm/engine/arg_utils.py"
_CLASSES = ("EngineArgs", "AsyncEngineArgs")


def options(wheel: Path) -> set[str]:
    """The fields of ``AsyncEngineArgs``, without those that are vLLM's own."""
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read(_SOURCE))
    return {name for name in _fields(module) if not name.startswith("_")}


def _fields(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name in _CLASSES:
            for entry in node.body:
                if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                    yield entry.target.id


def table(found: dict[str, set[str]]) -> str:
    """The Python text of the table, from the options of each version, oldest first."""
    versions = ", ".join(f'"{version}"' for version in found)
    names = " ".join(sorted(set.union(*found.values())))
    return "\n".join(
        [f"VERSIONS = ({versions},)", '_OPTIONS = """', *textwrap.wrap(names, 100), '"""']
    )


def main() -> int:
    wheels = [Path(argument) for argument in sys.argv[1:]]
    if not wheels:
        sys.stderr.write("give the wheels of at least one version\n")
        return 2
    found = {wheel.name.split("-")[1]: options(wheel) for wheel in wheels}
    by_age = sorted(found, key=lambda version: [int(part) for part in version.split(".")[:3]])
    print(table({version: found[version] for version in by_age}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
