"""Finding templates, site files and error pages: beside the user, on the machine, in the wheel."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import Problem, SpecError

if TYPE_CHECKING:  # it lives elsewhere on Python 3.10
    from importlib.resources.abc import Traversable

__all__ = [
    "builtin",
    "config_directories",
    "config_home",
    "error_pages",
    "find_site",
    "model_cache",
    "search_path",
    "site_names",
    "state_home",
    "templates",
]


def builtin(kind: str) -> Traversable:
    """The directory of the shipped ``templates``, ``site_configs`` or ``reference``.

    In a wheel it lies in ``launcher/_data``; in a checkout (and so in an editable install) it
    is the directory of the repository that becomes that one.
    """
    packaged = resources.files("launcher") / "_data" / kind
    if packaged.is_dir():
        return packaged
    root = Path(__file__).resolve().parent.parent
    return root / "docs" / kind if kind == "reference" else root / kind


def config_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's own configuration directory, ``~/.config/hpc-llm``."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def state_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user's runs are listed, ``~/.local/state/hpc-llm``."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def model_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where built-in models are kept once converted; ``$HPC_LLM_MODEL_CACHE`` moves it."""
    if own := environ.get("HPC_LLM_MODEL_CACHE"):
        return Path(own)
    return _xdg(environ, "XDG_CACHE_HOME", ".cache") / "models"


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    base = environ.get(variable) or str(Path(environ.get("HOME", "/")) / default)
    return Path(base) / "hpc-llm"


def config_directories(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where users and administrators keep their own files, the most personal place first."""
    roots = [config_home(environ), Path("/etc/hpc-llm")]
    if explicit := environ.get("HPC_LLM_CONFIG_DIR"):
        roots.insert(0, Path(explicit))
    return roots


def search_path(kind: str, environ: Mapping[str, str] = os.environ) -> tuple[Traversable, ...]:
    """Directories to look in for ``kind``; the first match wins, whole files only.

    ``$HPC_LLM_CONFIG_DIR``, ``~/.config/hpc-llm``, ``/etc/hpc-llm``, then what is shipped.
    Never the working directory: a job must not depend on where it was typed.
    """
    return (*(root / kind for root in config_directories(environ)), builtin(kind))


def templates(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Every template by its path, an override in place of the shipped one."""
    found: dict[str, str] = {}
    for directory in reversed(search_path("templates", environ)):
        found.update(_texts(directory))
    return found


def _texts(directory: Traversable, prefix: str = "") -> Iterator[tuple[str, str]]:
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _texts(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".j2"):
            yield prefix + entry.name, entry.read_text(encoding="utf-8")


def site_names(environ: Mapping[str, str] = os.environ) -> dict[str, Traversable]:
    """Every known site by name, and the file that counts for it."""
    found: dict[str, Traversable] = {}
    for directory in reversed(search_path("site_configs", environ)):
        if directory.is_dir():
            found.update(
                (entry.name.removesuffix(".yaml"), entry)
                for entry in directory.iterdir()
                if entry.name.endswith(".yaml")
            )
    return dict(sorted(found.items()))


def find_site(name: str, environ: Mapping[str, str] = os.environ) -> Traversable:
    """The site file called ``name``, or at that path when it has a slash or ends in .yaml.

    Raises
    ------
    SpecError
        ``site.unknown``; the hint names the nearest site there is.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    known = site_names(environ)
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
    raise SpecError(Problem("site.unknown", f"no site is called {name!r}", hint=hint))


def error_pages() -> dict[str, str]:
    """The section of ``docs/reference/errors.md`` for each error code."""
    text = (builtin("reference") / "errors.md").read_text(encoding="utf-8")
    sections = text.split("\n### `")[1:]
    return {
        code: body.split("\n## ")[0].strip()
        for code, _, body in (section.partition("`") for section in sections)
    }
