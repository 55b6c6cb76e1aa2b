"""Which values of vLLM's `engine_options` are refused before a job waits for its GPUs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vllm_options import options, table
from launcher.plan.vllm_options import kinds, known_options, wrong_values

COUNT = "a whole number of at least 1"
SHARE = "a number above 0 and up to 1"
TRUTH = "true or false"
TEXT = "text, in quotes if it looks like a number"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_num_seqs", "many", COUNT),
        ("max_num_seqs", 0, COUNT),
        ("max_num_seqs", 2.5, COUNT),
        ("max_num_seqs", float("inf"), COUNT),
        ("max_num_seqs", {"a": 1}, COUNT),
        ("max_num_batched_tokens", "8k", COUNT),
        ("max_model_len", -5, "a whole number of at least -1"),
        ("max_model_len", "4k", "a whole number of at least -1"),
        ("gpu_memory_utilization", [0.9], SHARE),
        ("gpu_memory_utilization", 90, SHARE),
        ("gpu_memory_utilization", 0, SHARE),
        ("gpu_memory_utilization", "90%", SHARE),
        ("gpu_memory_utilization", float("nan"), SHARE),
        ("seed", "today", "a whole number"),
        ("seed", True, "a whole number"),
        ("max_num_seqs", 16.0, COUNT),
        ("max_num_seqs", "16", COUNT),
        ("gpu_memory_utilization", "0.5", SHARE),
        ("gpu_memory_utilization", True, SHARE),
        ("enforce_eager", 1, TRUTH),
        ("enforce_eager", "yes", TRUTH),
        ("cpu_offload_gb", -1, "a number of at least 0"),
        ("enforce_eager", 3, TRUTH),
        ("enforce_eager", "maybe", TRUTH),
        ("enable_prefix_caching", [True], TRUTH),
        ("revision", 1.0, TEXT),
        ("download_dir", ["/tmp"], TEXT),
    ],
)
def test_a_value_that_vllm_would_refuse_is_told_with_what_it_takes(
    name: str, value: object, words: str
) -> None:
    (found,) = wrong_values({name: value, "dtype": "bfloat16"})
    assert (found.option, found.owned, found.sure) == (name, False, True)
    assert found.message == f"engine option `{name}` is {value!r}, and vLLM takes {words}"
    assert found.hint.startswith(f"write {words}")
    assert ("without quotes" in found.hint) == (isinstance(value, str))


@pytest.mark.parametrize(
    "given",
    [
        {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "revision": "1.0"},
        {"gpu_memory_utilization": 1, "cpu_offload_gb": 4.5, "kv_offloading_size": 0},
        {"enforce_eager": True, "max_model_len": -1, "seed": 0},
        # What is not given is vLLM's own default.
        {"max_model_len": None, "enforce_eager": None, "revision": None},
        # What is one of several kinds, and what is not checked by vLLM or not always.
        {"compilation_config": 3, "quantization": "fp8", "hf_overrides": '{"a": 1}'},
        {"enable_lora": "true", "max_loras": "many", "disable_log_stats": 3, "block_size": "x"},
        {"limit_mm_per_prompt": {"image": 1}, "served_model_name": ["a"], "hf_token": True},
        # Said by their names already.
        {"tensor_parallel_size": "two", "max_num_sequences": "many"},
    ],
)
def test_what_vllm_takes_or_may_take_is_not_refused(given: dict[str, Any]) -> None:
    assert wrong_values(given) == []


def test_several_wrong_values_are_told_in_the_order_of_the_file() -> None:
    given = {"seed": "x", "max_num_seqs": 0, "enforce_eager": "?", "dtype": 1, "watermark": 1}
    wrong = ["seed", "max_num_seqs", "enforce_eager", "watermark"]
    assert [found.option for found in wrong_values(given)] == wrong


def test_a_long_value_is_shortened() -> None:
    (found,) = wrong_values({"seed": "9" * 500 + "x"})
    assert len(found.message) < 150


def test_only_options_that_there_are_have_a_kind() -> None:
    assert kinds().keys() < known_options()
    assert all(name.isidentifier() for name in known_options())


ARGS = """
class EngineArgs:
    _own: int = 0
    seqs: int | None = None
    share: float = 0.9
    mode: str | int = ""
    later: bool = False
    loras: int = 1
    {more}

    def create_engine_config(self):
        cache = CacheConfig(share=self.share, mode=self.mode, later=self.later or None)
        lora = LoRAConfig(loras=self.loras) if self.later else None
        return SchedulerConfig(max_num_seqs=self.seqs)
"""
CONFIG = """
@config
class CacheConfig:
    share: float = Field(default=0.9, gt=0, le=1)
    mode: str | int = ""
    later: bool = False

@config(config=ConfigDict(arbitrary_types_allowed=True))
class SchedulerConfig:
    max_num_seqs: int = Field(default=128{least})

@config
class LoRAConfig:
    loras: int = 1
"""


def wheel(path: Path, *, least: str, more: str = "") -> zipfile.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm/engine/arg_utils.py", ARGS.format(more=more))
        archive.writestr("vllm/config/all.py", CONFIG.format(least=least))
        archive.writestr("vllm/config/notes.txt", "no Python")
    return zipfile.Path(path, "vllm/")


def test_the_table_has_a_kind_where_every_version_checks_it(tmp_path: Path) -> None:
    old = options(wheel(tmp_path / "old.whl", least=", ge=1"))
    assert old == {"seqs": "int>=1", "share": "float>0<=1", "mode": "", "later": "", "loras": ""}
    new = options(wheel(tmp_path / "new.whl", least="", more="added: str = ''"))
    assert table({"1.0.0": old, "1.1.0": new}).splitlines() == [
        'VERSIONS = ("1.0.0", "1.1.0",)',
        '_OPTIONS = """',
        "added later loras mode seqs:int share:float>0<=1",
        '"""',
    ]
