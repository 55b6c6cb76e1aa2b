"""How long ``hpc-llm`` takes to answer, and what it imports on the way.

Start-up time is spent on opening files, and a home directory on a parallel file system opens them
slowly. So three figures are given for each command: the modules that it imports, the wall time as
a multiple of an empty Python's on the same machine in the same minute, and the wall time when each
opening of a file takes a millisecond more (by strace, where there is one).

    python benchmarks/cli_start.py [--runs N] [--peer 'COMMAND WITH ARGUMENTS']...
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMMANDS", "FORBIDDEN", "Command", "imported", "strangers"]

ROOT = Path(__file__).resolve().parent.parent
# Slow to import, and needed by neither command: packages, and parts of them.
FORBIDDEN = ("asyncio", "launcher.engines", "rich", "submitit", "torch", "transformers")
OF_INTEREST = ("asyncio", "jinja2", "msgspec", "rich", "submitit", "torch", "yaml")
OPEN_DELAY_US = 1000
_PROBE = """
import json, sys
from launcher.cli import main
try:
    main(sys.argv[1:], prog_name="hpc-llm")
except SystemExit as end:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
    raise
"""


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed after ``hpc-llm``, and how many modules it may import, Python's included."""

    arguments: tuple[str, ...]
    most_modules: int


_DRY_RUN = ("submit", "--dry-run", "--site", "local", "--set", "engine=echo")
COMMANDS = (
    Command(("--help",), 160),
    Command((*_DRY_RUN, str(ROOT / "jobs" / "quickstart.yaml")), 350),
)


def imported(command: Command, home: Path) -> list[str]:
    """Names of all modules that are loaded when ``command`` has ended, in a Python of its own.

    Parameters
    ----------
    home
        An empty directory that takes the place of the user's, so that no settings count.

    Raises
    ------
    RuntimeError
        The command failed, so that its modules tell nothing.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *command.arguments, *_nowhere(command, home)],
        env=_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command.arguments)} failed: {done.stderr}")
    names: list[str] = json.loads(done.stderr.splitlines()[-1])
    return names


def strangers(modules: Sequence[str], packages: Sequence[str]) -> list[str]:
    """Those of ``packages`` that are among ``modules``."""
    return [name for name in packages if name in modules]


def _environment(home: Path) -> Mapping[str, str]:
    # Without bytecode on disk every start would compile all of it.
    left_out = ("XDG_", "HPC_LLM_", "PYTHONDONTWRITEBYTECODE")
    return {k: v for k, v in os.environ.items() if not k.startswith(left_out)} | {"HOME": str(home)}


def _nowhere(command: Command, home: Path) -> list[str]:
    """A run directory that does not exist: one of another job would be refused."""
    return ["--set", f"output.path={home / 'run'}"] if "submit" in command.arguments else []


def _wall_s(argv: Sequence[str], home: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        argv,
        env=_environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def _medians_s(commands: Mapping[str, Sequence[str]], runs: int, home: Path) -> dict[str, float]:
    """Median wall time of each, taken in turns so that a busy minute slows all alike."""
    for argv in commands.values():  # bytecode and page cache
        _wall_s(argv, home)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, argv in commands.items():
            taken[name].append(_wall_s(argv, home))
    return {name: statistics.median(times) for name, times in taken.items()}


def _slowly_opening(argv: Sequence[str]) -> list[str]:
    inject = f"inject=openat:delay_enter={OPEN_DELAY_US}"
    return ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=openat", "-e", inject, *argv]


def _table(title: str, medians_s: Mapping[str, float]) -> None:
    base_s = medians_s["python -c pass"]
    print(f"\n{title}")
    for name, median_s in medians_s.items():
        print(f"  {median_s * 1000:8.0f} ms  {median_s / base_s:6.1f} x  {name}")


def _imports(home: Path) -> None:
    print("modules")
    for command in COMMANDS:
        names = imported(command, home)
        among = ", ".join(strangers(names, OF_INTEREST)) or "none"
        print(
            f"  {len(names):4} of at most {command.most_modules}  "
            f"{_short(command)}  (of {', '.join(OF_INTEREST)}: {among})"
        )


def _short(command: Command) -> str:
    words = [Path(word).name if word.startswith("/") else word for word in command.arguments]
    return shlex.join(["hpc-llm", *words])


def _programs(peers: Sequence[str], home: Path) -> dict[str, list[str]]:
    own = str(Path(sys.executable).with_name("hpc-llm"))
    programs = {"python -c pass": [sys.executable, "-c", "pass"]}
    for command in COMMANDS:
        programs[_short(command)] = [own, *command.arguments, *_nowhere(command, home)]
    return programs | {peer: shlex.split(peer) for peer in peers}


def main() -> None:
    """Print the figures of this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="runs of each command")
    parser.add_argument("--peer", action="append", default=[], help="another program to time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        _imports(home)
        programs = _programs(options.peer, home)
        _table(
            f"wall time, median of {options.runs}, and as a multiple of an empty Python's",
            _medians_s(programs, options.runs, home),
        )
        if shutil.which("strace") is None:
            print("\nno strace on this machine: the time with slow opening is not measured")
            return
        slow = {name: _slowly_opening(argv) for name, argv in programs.items()}
        _table(
            f"the same with {OPEN_DELAY_US} us more for each openat, median of 3",
            _medians_s(slow, 3, home),
        )


if __name__ == "__main__":
    main()
