"""SmolLM2 with heads that two ranks can share: the same answers, from a checkpoint of other sizes.

Its 9 query and 3 key-value heads cannot be cut in two. Heads whose weights are all zero add
nothing to any sum, so a fourth group of them changes no number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["widen"]

KV_HEADS = 4


def widen(source: Path, target: Path) -> Path:
    """Write the checkpoint in ``source`` to ``target``, with heads of zeros up to `KV_HEADS`."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_bytes())
    per_group = config["num_attention_heads"] // config["num_key_value_heads"]
    config |= {"num_key_value_heads": KV_HEADS, "num_attention_heads": KV_HEADS * per_group}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    width = {"k": KV_HEADS * config["head_dim"], "v": KV_HEADS * config["head_dim"]}
    width |= {"q": width["k"] * per_group, "o": width["k"] * per_group}
    weights = source / "model.safetensors"
    tensors = [_widened(*tensor, width) for tensor in _read(weights)]
    _write(target / weights.name, tensors)
    return target


Tensor = tuple[str, dict[str, Any], bytes]


def _widened(name: str, facts: dict[str, Any], data: bytes, width: dict[str, int]) -> Tensor:
    kind = name.rpartition("self_attn.")[2].removesuffix("_proj.weight")
    if kind not in width:
        return name, facts, data
    rows, columns = facts["shape"]
    row_bytes = len(data) // rows
    if kind != "o":  # rows are outputs, and new ones come last
        shape = [width[kind], columns]
        data += bytes(row_bytes * (width[kind] - rows))
    else:
        shape = [rows, width[kind]]
        gap = bytes(row_bytes // columns * (width[kind] - columns))
        data = b"".join(data[at : at + row_bytes] + gap for at in range(0, len(data), row_bytes))
    return name, facts | {"shape": shape}, data


def _read(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file: a length, a JSON header, then one buffer."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    for name, facts in header.items():
        first, end = facts["data_offsets"]
        yield name, facts, data[start + first : start + end]


def _write(path: Path, tensors: list[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, facts, data in tensors:
        header[name] = facts | {"data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors:
            file.write(data)
