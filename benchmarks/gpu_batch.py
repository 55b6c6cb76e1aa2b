"""vLLM's own batch command, `vllm run-batch`, as a process that starts from nothing.

It takes chat completions and no plain ones (vllm/entrypoints/openai/run_batch.py of 0.24), so
its rows are chat, and the model has a tokenizer. It hands all rows to the engine at once, holds
all answers until the last, writes them in one go, and cannot go on after a kill.

Of itself it would run 128 sequences a step, as vLLM has no default for its context
(vllm/engine/arg_utils.py, ``get_batch_defaults``): options have to say how many.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_watch import session

# What it logs: the engine is ready, and every row is answered.
MARKS = {"ready": "Reading batch from", "answered": "Writing outputs to local file"}
LOG_TAIL = 4000


def flags(options: Mapping[str, Any]) -> Iterator[str]:
    """Engine options, by the names of Python's API, as words of vLLM's command line."""
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{dashed}"
        else:
            yield from (f"--{dashed}", value if isinstance(value, str) else json.dumps(value))


def run_batch(
    model: Path,
    options: Mapping[str, Any],
    rows: Path,
    output: Path,
    environ: Mapping[str, str],
    limit_s: float,
) -> dict[str, Any]:
    """Answer ``rows``; when it was ready and done, and what was answered."""
    words = ["-i", rows, "-o", output, "--model", model, "--served-model-name", "bench"]
    # hpc-llm asks for this too. The flag has no opposite.
    asked = [*flags(options), "--disable-log-stats"]
    python = [sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch"]
    command = [str(word) for word in (*python, *words, *asked)]
    marks: dict[str, float] = {}
    log: list[str] = []
    started = time.time()
    code: int | None = None
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environ}
    with session(command, **how) as process:
        reader = threading.Thread(target=_follow, args=(process.stdout, log, marks), daemon=True)
        reader.start()
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            log.append(f"no end in {limit_s:.0f} s\n")
    ended = time.time()
    found: dict[str, Any] = {"code": code, "started": started, "ended": ended}
    found |= answered(output)
    found |= {f"{name}_at": when for name, when in marks.items()}
    if output.exists():
        found["output_at"] = output.stat().st_mtime
    if code != 0 or found["failed"]:
        found["log"] = "".join(log)[-LOG_TAIL:]
        print(found["log"], file=sys.stderr)
    return found


def _follow(lines: Any, log: list[str], marks: dict[str, float]) -> None:
    for line in lines:
        log.append(line)
        for name, said in MARKS.items():
            if said in line:
                marks.setdefault(name, time.time())


def answered(output: Path) -> dict[str, int]:
    """Rows, how many of them failed, and their tokens, by the usage that each answer tells."""
    found = {"rows": 0, "failed": 0, "prompt_tokens": 0, "new_tokens": 0}
    if output.exists():
        for line in output.open():
            answer = json.loads(line)
            usage = ((answer["response"] or {}).get("body") or {}).get("usage")
            found["rows"] += 1
            found["failed"] += answer["error"] is not None or usage is None
            if usage is not None:
                found["prompt_tokens"] += usage["prompt_tokens"]
                found["new_tokens"] += usage["completion_tokens"]
    return found
