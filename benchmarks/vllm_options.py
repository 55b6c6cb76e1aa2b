"""Write the table of vLLM's engine options anew, from the sources of some of its versions.

``python -m benchmarks.vllm_options WHEEL…`` prints what the end of
`launcher.plan.vllm_options` holds. Each WHEEL is a file as pip downloads it
(``pip download --no-deps vllm==0.24.0``); nothing of it is imported.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

_CLASSES = ("EngineArgs", "AsyncEngineArgs")
_PLAIN = re.compile(r"(bool|int|float|str)( \| None)?")
# Bounds of pydantic's Field.
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def options(vllm: Path | zipfile.Path) -> dict[str, str]:
    """The fields of ``AsyncEngineArgs``, without vLLM's own, and the kind of each where it is sure.

    Sure is what a class of ``vllm/config`` says of a field that always gets the option as it was
    given, for pydantic checks that: ``int>=1``. Of others the kind is empty.

    Parameters
    ----------
    vllm
        The directory of the package.
    """
    module = ast.parse((vllm / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    classes = [n for n in module.body if isinstance(n, ast.ClassDef) and n.name in _CLASSES]
    fields = [entry for found in classes for entry in _fields(found)]
    checked = dict(_checked(vllm))
    kinds = {name: checked.get(place, "") for found in classes for name, place in _given(found)}
    return {name: kinds.get(name, "") for name in map(_name, fields) if not name.startswith("_")}


def _fields(of: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    for entry in of.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            yield entry


def _name(field: ast.AnnAssign) -> str:
    return ast.unparse(field.target)


def _given(of: ast.ClassDef) -> Iterator[tuple[str, tuple[str, str]]]:
    """Options by the field that gets each, as in ``CacheConfig(block_size=self.block_size)``."""
    unsure = [n for n in ast.walk(of) if isinstance(n, (ast.If, ast.IfExp))]
    beside = {inner for node in unsure for inner in ast.walk(node)}
    for call in ast.walk(of):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call not in beside:
            for keyword in call.keywords:
                owner, _, name = ast.unparse(keyword.value).partition(".")
                if owner == "self" and name.isidentifier() and keyword.arg:
                    yield name, (call.func.id, keyword.arg)


def _checked(vllm: Path | zipfile.Path) -> Iterator[tuple[tuple[str, str], str]]:
    """The kind of each plain field by its class and name."""
    for file in (vllm / "config").iterdir():
        if file.name.endswith(".py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and "config" in map(_called, node.decorator_list):
                    for field in _fields(node):
                        if plain := _PLAIN.fullmatch(ast.unparse(field.annotation)):
                            yield (node.name, _name(field)), plain[1] + _bounds(field)


def _called(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def _bounds(field: ast.AnnAssign) -> str:
    keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
    limits = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
    return "".join(sign + limits[name] for name, sign in _BOUNDS.items() if name in limits)


def common(kinds: list[str]) -> str:
    """What is sure of an option in every version: a bound that one of them lacks is none."""
    if len(set(kinds)) == 1:
        return kinds[0]
    plain = {re.sub(r"[<>].*", "", kind) for kind in kinds}
    return plain.pop() if len(plain) == 1 else ""


def table(found: dict[str, dict[str, str]]) -> str:
    """The Python text of the table, from the options of each version, oldest first."""
    versions = ", ".join(f'"{version}"' for version in found)
    kinds = {
        name: common([own[name] for own in found.values() if name in own])
        for name in sorted(set().union(*found.values()))
    }
    words = " ".join(f"{name}:{kind}".rstrip(":") for name, kind in kinds.items())
    lines = textwrap.wrap(words, 100, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"VERSIONS = ({versions},)", '_OPTIONS = """', *lines, '"""'])


def main() -> int:
    wheels = [Path(argument) for argument in sys.argv[1:]]
    if not wheels:
        sys.stderr.write("give the wheels of at least one version\n")
        return 2
    found = {w.name.split("-")[1]: options(zipfile.Path(w, "vllm/")) for w in wheels}
    by_age = sorted(found, key=lambda version: [int(part) for part in version.split(".")[:3]])
    print(table({version: found[version] for version in by_age}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
