"""A user of TensorRT-LLM: ``python trtllm_task.py FILE CODE`` asks, prints the answers, exits.

FILE is JSON: ``llm``, the arguments of LLM; ``params``, those of SamplingParams; ``prompts``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    # By name: nobody has it here to be type-checked against.
    trtllm = importlib.import_module("tensorrt_llm")
    told = json.loads(Path(sys.argv[1]).read_bytes())
    with trtllm.LLM(**told["llm"]) as llm:
        params = trtllm.SamplingParams(**told.get("params", {}))
        for result in llm.generate(told["prompts"], params):
            output = result.outputs[0]
            print("answer", json.dumps([output.text, output.finish_reason]), flush=True)
    print("the task is over", flush=True)
    sys.exit(int(sys.argv[2]))


if __name__ == "__main__":
    main()
