"""What a checkpoint's directory holds, told without a pass over its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Fingerprint", "fingerprint"]

END_BYTES = 1 << 20
# Reads that wait for a parallel file system at the same time.
_READERS = 8
_SMALL_FILES = (".json", ".jinja", ".model", ".txt")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """One copy of a checkpoint.

    Attributes
    ----------
    digest
        Of the content of every small file and of the names and sizes of the weights: two
        copies of one checkpoint have the same one.
    files
        What is known of each file, by its name: of small ones their content, of weights their
        size and, where asked for, their ends.
    """

    digest: str
    files: Mapping[str, str]


def fingerprint(directory: Path, *, ends: bool = False) -> Fingerprint:
    """Read the checkpoint in ``directory``, links followed.

    Parameters
    ----------
    ends
        Whether to read the first and the last MiB of every file of weights: 200 MiB of 100 of
        them, of whatever size, beside the small files, which are some 20 MB.

    Raises
    ------
    OSError
        There is no such directory, or a file of it cannot be read.
    """
    total, files = hashlib.sha256(), {}
    paths = sorted(directory.iterdir())
    for path in (path for path in paths if path.suffix in _SMALL_FILES):
        content = hashlib.sha256(path.read_bytes())
        total.update(f"{path.name}\0".encode() + content.digest())
        files[path.name] = content.hexdigest()
    sizes = {path: path.stat().st_size for path in paths if path.suffix in _WEIGHTS}
    for path, size in sizes.items():
        total.update(f"{path.name}\0{size}\0".encode())
        files[path.name] = f"{size} bytes"
    if ends:
        with ThreadPoolExecutor(_READERS) as pool:
            for path, found in zip(sizes, pool.map(_ends, sizes, sizes.values()), strict=True):
                files[path.name] += f" {found}"
    return Fingerprint(digest=total.hexdigest(), files=files)


def _ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        found.update(file.read(END_BYTES))
    return found.hexdigest()
