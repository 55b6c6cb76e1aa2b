"""How many files a large run makes: 10^8 rows, 64 replicas, 20 restarts.

What a unit and what a start of a replica leaves behind is counted in small runs that go the whole
way, script included, and multiplied. The grid of the large run is the real one.

    python benchmarks/inodes.py [--row-bytes N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.plan.grid import count, make_grid  # noqa: E402

ROWS, REPLICAS, RESTARTS = 10**8, 64, 20
BUDGET = 20_000


def run_files(folder: Path, *, rows: int, starts: int) -> tuple[int, int]:
    """Files and units of a run whose first ``starts - 1`` starts end on their engine's death."""
    folder.mkdir()
    lines = (json.dumps({"text": f"{n:060}"}) + "\n" for n in range(rows))
    (folder / "in.jsonl").write_text("".join(lines))
    job = {"name": "inodes", "engine": "echo", "model": "echo", "output": {"path": "run"}}
    job |= {"input": {"path": "in.jsonl", "prompt": "{{ text }}", "chat": False}}
    job |= {"engine_options": {"die_after": rows // starts + 1}} if starts > 1 else {}
    (folder / "job.json").write_text(json.dumps(job))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "launcher", "render", "job.json", "--site", "local"]
    subprocess.run(
        [*command, "--out", "run"], cwd=folder, env=environ, check=True, capture_output=True
    )
    script = ["bash", str(folder / "run" / "script.sh")]
    for _ in range(starts):
        subprocess.run(
            script, env={**environ, "SLURM_JOB_ID": "1"}, check=False, capture_output=True
        )
    assert (folder / "run" / "DONE").exists()
    units = count(make_grid((folder / "in.jsonl").stat().st_size))
    return sum(path.is_file() for path in (folder / "run").rglob("*")), units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row-bytes", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        few, few_units = run_files(Path(name) / "few", rows=40, starts=1)
        many, many_units = run_files(Path(name) / "many", rows=400, starts=1)
        again, _ = run_files(Path(name) / "again", rows=400, starts=3)
    a_unit = (many - few) / (many_units - few_units)
    a_start = (again - many) / 2
    units = count(make_grid(ROWS * args.row_bytes))
    fixed = few - few_units * a_unit - a_start
    starts = REPLICAS * (RESTARTS + 1)
    total = fixed + units * a_unit + starts * a_start
    print(f"{a_unit:.1f} files a unit, {a_start:.1f} a start of a replica, {fixed:.0f} a run")
    print(f"{ROWS} rows of {args.row_bytes} bytes are {units} units; {starts} starts")
    print(f"{total:.0f} files, {total / BUDGET:.2f} of {BUDGET}")


if __name__ == "__main__":
    main()
