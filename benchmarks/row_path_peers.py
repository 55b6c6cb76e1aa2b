"""The same rows through two other runners, for `row_path.py`, which starts this file.

Each renders both templates and answers with the prompt's tail, in its own recommended form: Ray
Data by ``map_batches`` on one actor, which keeps nothing of an unfinished run, and datatrove's
inference runner with checkpoints and a rollout function that asks no server.

    python benchmarks/row_path_peers.py ray|datatrove FOLDER
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "Summarise:\n{{ text }}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@functools.cache
def template(source: str) -> Any:
    """Compiled where it is used: Ray's actor cannot be sent one."""
    import jinja2

    return jinja2.Environment().from_string(source)


def answer(text: str) -> dict[str, Any]:
    content = template(PROMPT).render(text=text)
    template(CHATML).render(messages=[{"role": "user", "content": content}])
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"text": content[-300:], "finish_reason": "stop", "usage": usage}


def by_ray(folder: Path) -> float:
    import ray  # type: ignore[import-not-found,unused-ignore]

    here = {"PYTHONPATH": str(Path(__file__).parent)}
    ray.init(
        runtime_env={"env_vars": here}, num_cpus=2, logging_level="ERROR", include_dashboard=False
    )
    ray.data.DataContext.get_current().enable_progress_bars = False

    class Echo:
        """What vLLM's own actor is in the examples of Ray Data."""

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            from row_path_peers import answer  # type: ignore[import-not-found,unused-ignore] # by its name: what __main__ holds is not sent

            batch["response"] = [json.dumps(answer(text)) for text in batch["text"]]
            return batch

    start = time.perf_counter()
    rows = ray.data.read_json(str(folder / "in.jsonl"), lines=True)
    done = rows.map_batches(Echo, concurrency=1, batch_size=256)
    done.write_json(str(folder / "ray-out"))
    took_s = time.perf_counter() - start
    ray.shutdown()
    return took_s


def by_datatrove(folder: Path) -> float:
    from datatrove.data import Document  # type: ignore[import-not-found,unused-ignore]
    from datatrove.pipeline.inference.run_inference import (  # type: ignore[import-not-found,unused-ignore]
        InferenceConfig,
        InferenceRunner,
    )
    from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-not-found,unused-ignore]
    from loguru import logger  # type: ignore[import-not-found,unused-ignore]

    logger.remove()

    async def rollout(document: Any, generate: Any) -> dict[str, Any]:  # noqa: ARG001 - asks none
        await asyncio.sleep(0)
        return answer(document.text)

    def documents() -> Any:
        with (folder / "in.jsonl").open() as lines:
            for row in map(json.loads, lines):
                yield Document(text=row["text"], id=row["id"])

    name = "${rank}_chunk_${chunk_index}.jsonl"
    runner = InferenceRunner(
        rollout_fn=rollout,
        config=InferenceConfig(
            server_type="dummy", model_name_or_path="echo", max_concurrent_generations=256
        ),
        output_writer=JsonlWriter(str(folder / "trove"), output_filename=name, compression=None),
        checkpoints_local_dir=str(folder / "checkpoints"),
        records_per_chunk=500,
    )
    start = time.perf_counter()
    runner.run(documents(), rank=0, world_size=1)
    return time.perf_counter() - start


def main() -> None:
    which, folder = sys.argv[1], Path(sys.argv[2])
    os.chdir(folder)
    took_s = by_ray(folder) if which == "ray" else by_datatrove(folder)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"wall_s": took_s, "rss_mb": usage.ru_maxrss / 1000}))


if __name__ == "__main__":
    main()
