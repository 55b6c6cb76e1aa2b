"""A rank that measures its links, in a process of its own: what is broken in CUDA ends there.

    python -m launcher.preflight.links ORDER

``ORDER`` is JSON: ``rank``, ``world``, ``device``, ``meeting`` (a path) and ``measurements``. Lines
of standard output that begin with `MARK` are JSON too: ``{"joined": true}`` once all ranks have
met, ``{"begun": i, "at_s": t}`` and ``{"done": i, "seconds": t, "latency_s": t}`` of measurement i,
or ``{"error": text, "gpu": whether it is the GPU's}``.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.engines.team import Team, quiet_torch

__all__ = ["MARK", "MESSAGES", "main"]

MARK = "hpc-llm link "
# The first one of them, which connects, does not count.
MESSAGES = 6
# More than its wrapper gives it, which may have been killed.
_LONGEST_S = 240


def main(order: Mapping[str, Any]) -> int:
    """Measure as ordered; the exit code."""
    signal.alarm(_LONGEST_S)
    quiet_torch()
    if (fault := _torch_fault(order["device"])) is not None:
        _tell(**fault)
        return 1
    team = Team(order["rank"], order["world"], Path(order["meeting"]), order["device"])
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    everyone = list(range(order["world"]))
    # All ranks make all groups, in one order.
    groups = [
        dist.new_group(m["ranks"]) if m["kind"] == "all-reduce" and m["ranks"] != everyone else None
        for m in order["measurements"]
    ]
    dist.all_reduce(_bytes(8, order["device"]))
    _tell(joined=True)
    for number, measurement in enumerate(order["measurements"]):
        if order["rank"] in measurement["ranks"]:
            _measure(number, measurement, order, groups[number])
    team.leave()
    return 0


def _torch_fault(device: str) -> dict[str, Any] | None:
    """Why nothing can be measured with this device, in words."""
    try:
        import torch  # noqa: PLC0415 - heavy
    except ImportError as exc:
        return {"error": str(exc), "gpu": False}
    if not device.startswith("cuda"):
        return None
    if torch.version.cuda is None:
        return {"error": "torch is built without CUDA", "gpu": False}
    try:
        torch.cuda.set_device(device)
        _bytes(8, device).sum().item()
    except RuntimeError as exc:
        return {"error": str(exc).strip().partition("\n")[0], "gpu": True}
    return None


def _measure(number: int, what: Mapping[str, Any], order: Mapping[str, Any], group: Any) -> None:
    latency_s = statistics.median(_times(_talk(what, 8, order, group)))
    talk = _talk(what, what["size"], order, group)
    _tell(begun=number, at_s=time.monotonic())
    seconds = _times(talk)
    _tell(done=number, seconds=statistics.median(seconds), latency_s=latency_s)


def _times(talk: Callable[[], None]) -> list[float]:
    found = []
    for _ in range(MESSAGES):
        began_s = time.perf_counter()
        talk()
        found.append(time.perf_counter() - began_s)
    return found[1:]


def _talk(
    what: Mapping[str, Any], size: int, order: Mapping[str, Any], group: Any
) -> Callable[[], None]:
    import torch  # noqa: PLC0415 - heavy
    import torch.distributed as dist  # noqa: PLC0415 - as above

    device, ranks = order["device"], what["ranks"]
    own, other = _bytes(size, device), _bytes(size, device)

    def reduce_all() -> None:
        dist.all_reduce(own, group=group)
        settle()

    def exchange() -> None:
        peer = ranks[1 - ranks.index(order["rank"])]
        both = [dist.P2POp(dist.isend, own, peer), dist.P2POp(dist.irecv, other, peer)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        settle()

    def settle() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return reduce_all if what["kind"] == "all-reduce" else exchange


def _bytes(size: int, device: str) -> Any:
    """So many of them, of a type that every library adds."""
    import torch  # noqa: PLC0415 - heavy

    return torch.zeros(size // 4, dtype=torch.float32, device=device)


def _tell(**what: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(what)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
