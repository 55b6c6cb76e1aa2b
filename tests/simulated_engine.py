"""An engine that batches continuously, computed from event to event and not from step to step.

All running requests get one token a step, so one number, the steps so far, is the progress of
all of them; a heap holds at which step each ends, and one timer waits for the first. With
`virtual_time` 10^5 rows of 10^3 tokens take seconds.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from launcher.engines.base import Capabilities, Completion, Request
from launcher.errors import Problem, RowError, RunError

__all__ = ["LLAMA_8B_ON_H100", "Cost", "SimulatedEngine", "Use"]

_SAME_STEP = 1e-6  # of one step; above what sums of floats lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds: of a step, of each request running in it, and of each token of a prompt."""

    step_s: float
    request_s: float
    prompt_token_s: float

    def of_step(self, running: int) -> float:
        return self.step_s + self.request_s * running

    def at_best(self, prompt_tokens: int, new_tokens: int, slots: int) -> float:
        """What a row takes of an engine that is full throughout, in seconds of the whole engine."""
        return prompt_tokens * self.prompt_token_s + new_tokens * self.of_step(slots) / slots

    def alone(self, prompt_tokens: int, new_tokens: int) -> float:
        return self.at_best(prompt_tokens, new_tokens, slots=1)


# Llama-3.1-8B in bfloat16, 16.06 GB of weights, on an H100 SXM of 3.35 TB/s and 989 TFLOP/s
# (NVIDIA's data sheet). A step alone: the weights at 77 % of the bandwidth, the share measured on
# an A100 in https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on. Each request: what makes
# 256 of them give about 12,500 tokens/s (https://www.morphllm.com/vllm-benchmarks), which is a KV
# cache of about 1,100 tokens read at that bandwidth. A prompt: 16 GFLOP a token at half the peak.
LLAMA_8B_ON_H100 = Cost(step_s=6.2e-3, request_s=56e-6, prompt_token_s=32e-6)


@dataclass
class Use:
    """How many requests ran at which time, over all engines that tell it, and when each ended."""

    running: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    ended: dict[str, float] = field(default_factory=dict)

    def change(self, now_s: float, by: int) -> None:
        at_s, count = self.running[-1]
        if at_s == now_s:
            self.running[-1] = (now_s, count + by)
        else:
            self.running.append((now_s, count + by))

    def area(self, start_s: float, end_s: float, least: int = 0) -> tuple[float, float]:
        """Request-seconds between two times, and seconds with fewer than ``least`` requests."""
        area = below = 0.0
        ends = [at_s for at_s, _ in self.running[1:]] + [end_s]
        for (at_s, count), until_s in zip(self.running, ends, strict=True):
            took_s = max(0.0, min(until_s, end_s) - max(at_s, start_s))
            area += took_s * count
            below += took_s * (count < least)
        return area, below


@dataclass(slots=True, eq=False)
class _Held:
    """A request in the engine. ``ends_at`` is a count of steps; -1 while it waits."""

    request: Request
    prompt_tokens: int
    new_tokens: int
    done: asyncio.Future[Completion]
    ends_at: float = -1.0

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens


class SimulatedEngine:
    """Answers nothing, in the time that a real engine would take.

    Parameters
    ----------
    lengths
        ``(prompt, new)`` tokens of a request, ``new`` before ``max_tokens`` cuts it.
    slots
        Requests that run at once; the others wait, first come, first served.
    waiting
        Requests beyond ``slots`` that it says are worth handing over.
    speed
        1 is as ``cost`` says, 0.5 takes twice as long.
    late_s
        What `start` takes.
    dies_s
        After how many seconds of the loop's clock it dies with ``engine.died``.
    kv_tokens
        A request waits while the prompts and answers of those running, at their full length,
        would not fit beside it.
    """

    def __init__(  # noqa: PLR0913 - what may be wrong with an engine
        self,
        lengths: Callable[[Request], tuple[int, int]],
        cost: Cost,
        *,
        slots: int,
        waiting: int = 0,
        speed: float = 1.0,
        late_s: float = 0.0,
        dies_s: float | None = None,
        kv_tokens: int | None = None,
        use: Use | None = None,
    ) -> None:
        self._lengths, self._cost = lengths, cost
        self._slots, self._waiting, self._speed = slots, waiting, speed
        self._late_s, self._dies_s, self._kv_tokens = late_s, dies_s, kv_tokens
        self._use = use or Use()
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Held] = deque()
        self._ends: list[tuple[float, int, _Held]] = []
        self._held: dict[str, _Held] = {}
        self._running = self._admitted = self._kv_held = 0
        self._kv_used = 0.0  # what running requests have filled so far
        self._steps = self._generated = 0.0
        self._prefill_s = 0.0  # prompts that come before the next step
        self._at_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._turning = False
        self._gone: Problem | None = None

    async def start(self) -> Capabilities:
        if self._dies_s is not None:
            self._loop.call_at(self._dies_s, self._die)
        await asyncio.sleep(self._late_s)
        most = self._slots + self._waiting
        return Capabilities(max_in_flight=most, chat_template=False, queues=True)

    async def generate(self, request: Request) -> Completion:
        if self._gone is not None:
            raise RunError(self._gone)
        prompt, new = self._lengths(request)
        new = min(new, request.sampling.max_tokens)
        held = _Held(request, prompt, new, self._loop.create_future())
        self._held[request.id] = held
        self._queue.append(held)
        if self._running < self._slots and not self._turning:
            self._turning = True  # those that come at the same moment begin together
            self._loop.call_soon(self._turn)
        try:
            return await held.done
        except asyncio.CancelledError:
            self._forget(held)
            raise

    async def abort(self, request_id: str) -> None:
        held = self._held.get(request_id)
        if held is not None:
            self._forget(held)
            held.done.set_exception(RowError("cancelled", "the request was given up"))

    def stats(self) -> Mapping[str, float]:
        self._advance()
        return {
            "running": self._running,
            "queued": len(self._held) - self._running,
            "kv_cache_usage": self._kv_used / self._kv_tokens if self._kv_tokens else 0.0,
            "iterations": int(self._steps + _SAME_STEP),
            "generated_tokens": int(self._generated + _SAME_STEP),
        }

    async def close(self) -> None:
        self._gone = Problem("engine.died", "the engine was closed")

    def _advance(self) -> None:
        """Bring all counts to the present."""
        now_s = self._loop.time()
        passed_s = (now_s - self._at_s) * self._speed
        self._at_s = now_s
        if not self._running:
            return
        prefill_s = min(self._prefill_s, passed_s)
        self._prefill_s -= prefill_s
        steps = (passed_s - prefill_s) / self._cost.of_step(self._running)
        self._steps += steps
        self._generated += steps * self._running
        self._kv_used += steps * self._running

    def _turn(self) -> None:
        """End what has ended, begin what fits, and wait for the next end."""
        self._turning = False
        if self._gone is not None:
            return
        self._advance()
        while self._ends and (
            self._ends[0][2].done.done() or self._ends[0][0] <= self._steps + _SAME_STEP
        ):
            self._answer(heapq.heappop(self._ends)[2])
        while self._queue and self._fits(self._queue[0]):
            self._begin(self._queue.popleft())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ends:
            steps_s = (self._ends[0][0] - self._steps) * self._cost.of_step(self._running)
            after_s = (self._prefill_s + max(0.0, steps_s)) / self._speed
            self._timer = self._loop.call_later(after_s, self._turn)

    def _fits(self, held: _Held) -> bool:
        if held.done.done() or not self._running:  # what was given up goes in this way, too
            return True
        room = self._kv_tokens is None or self._kv_held + held.kv_tokens <= self._kv_tokens
        return room and self._running < self._slots

    def _begin(self, held: _Held) -> None:
        if held.done.done():
            return
        held.ends_at = self._steps + held.new_tokens
        self._admitted += 1
        heapq.heappush(self._ends, (held.ends_at, self._admitted, held))
        self._prefill_s += held.prompt_tokens * self._cost.prompt_token_s
        self._kv_used += held.prompt_tokens
        self._kv_held += held.kv_tokens
        self._count(1)

    def _answer(self, held: _Held) -> None:
        if held.done.done():
            return
        self._release(held, left=0.0)
        self._use.ended[held.request.id] = self._loop.time()
        cut = held.new_tokens >= held.request.sampling.max_tokens
        answer = Completion(
            text="",
            finish_reason="length" if cut else "stop",
            prompt_tokens=held.prompt_tokens,
            completion_tokens=held.new_tokens,
        )
        held.done.set_result(answer)

    def _release(self, held: _Held, *, left: float) -> None:
        """Free the slot of a running request that has ``left`` tokens to go."""
        del self._held[held.request.id]
        self._kv_held -= held.kv_tokens
        self._kv_used -= held.kv_tokens - left
        self._count(-1)

    def _forget(self, held: _Held) -> None:
        """Drop a request that nobody waits for any more."""
        if self._held.get(held.request.id) is not held:
            return
        if held.ends_at < 0:
            del self._held[held.request.id]
            return
        self._advance()
        self._release(held, left=held.ends_at - self._steps)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _die(self) -> None:
        self._gone = Problem("engine.died", "the simulated engine died, as it was told to")
        if self._timer is not None:
            self._timer.cancel()
        self._count(-self._running)
        for held in self._held.values():
            if not held.done.done():
                held.done.set_exception(RunError(self._gone))
        self._held.clear()

    def _count(self, by: int) -> None:
        self._running += by
        self._use.change(self._loop.time(), by)
