#!/usr/bin/env python3
"""apptainer (also as singularity) and enroot, as far as images are pulled with them.

The command is the name this file is called by (the links in ``images``). Words and refusals are
those of apptainer/apptainer 1.3 (``apptainer build``, pkg/sylog) and NVIDIA/enroot 3.5
(doc/cmd/import.md, src/docker.sh, src/common.sh). The directory ``$FAKE_IMAGES`` has

- ``calls.jsonl``, a line for each call,
- ``fail``, if pulls are to end with that text and a file that is half there,
- ``hold``, as long as pulls are to go on,
- ``arch``, the two digits in the header of a SIF file (apptainer/sif, pkg/sif/arch.go).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import NoReturn

HOME = Path(os.environ["FAKE_IMAGES"])


def apptainer(words: list[str]) -> None:
    if len(words) != 3 or words[0] != "build":
        die(1, f"Error: unknown command {words} for the fake")
    out = Path(words[1])
    if out.exists():
        die(255, f"FATAL:   While checking build target: build target '{out}' already exists")
    if not re.fullmatch(r"(docker|oras|library)://[^#]+", words[2]):
        die(255, f"FATAL:   While performing build: conveyor failed to get: {words[2]}")
    arch = (HOME / "arch").read_text() if (HOME / "arch").exists() else "02"
    head = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0")
    pull(out, head + b"SIF_MAGIC\x0001\0" + arch.encode() + b"\0")


def enroot(words: list[str]) -> None:
    if len(words) != 4 or words[:2] != ["import", "-o"]:
        die(1, f"[ERROR] Invalid arguments for the fake: {words}")
    out = Path(words[2])
    if out.exists():
        die(1, f"[ERROR] File already exists: {out}")
    if not (taken := re.fullmatch(r"docker://([^@/]+@)?([^/#]+#)?([^#]+)", words[3])):
        die(1, f"[ERROR] Invalid image reference: {words[3]}")
    if taken[2] is None and "." in taken[3].partition("/")[0]:
        die(1, "[ERROR] URL https://auth.docker.io/token returned error code: 401 Unauthorized")
    pull(out, b"hsqs")


def pull(out: Path, data: bytes) -> None:
    print("[INFO] Fetching image manifest", flush=True)
    out.write_bytes(data[:2])
    while (HOME / "hold").exists():
        time.sleep(0.02)
    if (HOME / "fail").exists():
        die(1, (HOME / "fail").read_text())
    out.write_bytes(data)


def die(code: int, text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


def main() -> None:
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    with (HOME / "calls.jsonl").open("a") as log:
        log.write(json.dumps([name, *words]) + "\n")
    {"apptainer": apptainer, "singularity": apptainer, "enroot": enroot}[name](words)


main()
