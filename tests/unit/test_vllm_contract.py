"""The stand-in for vLLM against the sources of a real one.

That is the vLLM which is installed or, unpacked from its wheel, lies in the directory that
``HPC_LLM_VLLM_SOURCE`` names. Nothing of it is imported, so no GPU is needed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from pathlib import Path

import pytest
from vllm_standin import STANDINS

from benchmarks.vllm_options import options
from launcher.engines.vllm_causes import start_failure
from launcher.plan.vllm_options import VERSIONS, kinds, known_options

STANDIN = STANDINS / "vllm"
# Of the stand-in's version everything has to be equal, of others what the engine relies on.
OWN_VERSION = "0.24"
OPTIONAL_SINCE = {"prompt_text", "reasoning_ended", "reasoning_parser_kwargs", "client_addresses"}
FUNCTIONS = [
    ("v1/engine/async_llm.py", "AsyncLLM.from_vllm_config"),
    ("v1/engine/async_llm.py", "AsyncLLM.generate"),
    ("v1/engine/async_llm.py", "AsyncLLM.abort"),
    ("v1/engine/async_llm.py", "AsyncLLM.shutdown"),
    ("v1/engine/async_llm.py", "AsyncLLM.get_supported_tasks"),
    ("v1/engine/async_llm.py", "AsyncLLM.get_tokenizer"),
    ("v1/metrics/loggers.py", "PrometheusStatLogger.__init__"),
    ("v1/metrics/loggers.py", "PrometheusStatLogger.record"),
    ("inputs/engine.py", "tokens_input"),
    ("engine/arg_utils.py", "EngineArgs.create_engine_config"),
    ("v1/executor/multiproc_executor.py", "MultiprocExecutor.__init__"),
    ("v1/executor/multiproc_executor.py", "MultiprocExecutor.start_worker_monitor"),
    ("v1/executor/multiproc_executor.py", "MultiprocExecutor.shutdown"),
    ("exceptions.py", "VLLMValidationError.__init__"),
]
FIELDS = [
    ("engine/arg_utils.py", "EngineArgs"),
    ("engine/arg_utils.py", "AsyncEngineArgs"),
    ("sampling_params.py", "SamplingParams"),
    ("sampling_params.py", "RequestOutputKind"),
    ("usage/usage_lib.py", "UsageContext"),
    ("outputs.py", "CompletionOutput"),
    ("logprobs.py", "Logprob"),
]
# By what it tells, in the order of the table of causes: where a text stands. A name that ends in
# `*` is that of several files, as functions have moved.
TEXTS = [
    ("platforms/*", "Failed to import from vllm._C"),
    ("v1/worker/utils.py", "is less than desired GPU memory utilization"),
    ("v1/worker/utils.py", "Free memory on device "),
    ("v1/worker/gpu_model_runner.py", "Failed to load model - not enough GPU memory"),
    ("v1/core/*", "No available memory for the cache blocks"),
    ("v1/core/*", "To serve at least one request with the model"),
    ("v1/core/*", "Cannot auto-fit max_model_len"),
    ("v1/engine/utils.py", "Engine core initialization failed"),
    ("v1/engine/exceptions.py", "EngineCore encountered an issue"),
    ("v1/executor/multiproc_executor.py", "WorkerProc initialization failed"),
]
# What the engine reads of the objects that vLLM gives it.
READ = [
    ("v1/metrics/stats.py", "num_running_reqs"),
    ("v1/metrics/stats.py", "num_waiting_reqs"),
    ("v1/metrics/stats.py", "kv_cache_usage"),
    ("v1/metrics/stats.py", "num_generation_tokens"),
    ("config/model.py", "def get_vocab_size(self)"),
    ("config/vllm.py", "cache_config: CacheConfig"),
    ("config/model.py", "skip_tokenizer_init"),
    ("config/scheduler.py", "max_num_seqs"),
    ("platforms/interface.py", "def is_cuda_alike(self)"),
    ("platforms/interface.py", "def is_xpu(self)"),
    ("platforms/interface.py", "device_type"),
    ("envs.py", '"VLLM_NO_USAGE_STATS"'),
    ("envs.py", '"VLLM_WORKER_MULTIPROC_METHOD"'),
    ("envs.py", '"VLLM_ENGINE_READY_TIMEOUT_S"'),
    ("tokenizers/protocol.py", "def apply_chat_template("),
    ("tokenizers/protocol.py", "def decode("),
    ("tokenizers/protocol.py", "def convert_ids_to_tokens("),
    ("logprobs.py", "LogprobsOnePosition = dict[int, Logprob]"),
    ("outputs.py", "logprobs: SampleLogprobs | None"),
    ("config/model.py", 'logprobs_mode: LogprobsMode = "raw_logprobs'),
    ("sampling_params.py", "if num_logprobs > max_logprobs:"),
    ("sampling_params.py", "which is greater than max allowed: {max_logprobs}"),
    ("v1/engine/input_processor.py", '"type" in prompt'),
    ("envs.py", '"VLLM_HOST_IP"'),
    ("utils/network_utils.py", "host_ip = envs.VLLM_HOST_IP"),
]
# Over several nodes: which ranks are whose, where they meet, what a process may see, and how the
# executor of a later node ends.
NODES = [
    ("config/parallel.py", "self.node_rank % self.nnodes_within_dp"),
    ("config/parallel.py", "self.world_size // self.nnodes_within_dp"),
    ("v1/executor/multiproc_executor.py", "self.local_world_size * self.parallel_config.node_rank"),
    ("v1/executor/multiproc_executor.py", "global_rank = global_start_rank + local_rank"),
    ("v1/executor/multiproc_executor.py", 'getattr(_self, "shutting_down", False)'),
    ("distributed/parallel_state.py", "the layout order is: ExternalDP x DP x PP x"),
    ("distributed/parallel_state.py", "ip = parallel_config.master_addr"),
    ("distributed/parallel_state.py", "port = parallel_config.master_port"),
    ("distributed/device_communicators/shm_broadcast.py", "current_platform.device_count()"),
]


@functools.cache
def real() -> Path:
    if given := os.environ.get("HPC_LLM_VLLM_SOURCE"):
        return Path(given)
    spec = importlib.util.find_spec("vllm")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        pytest.skip("vllm is not installed, and HPC_LLM_VLLM_SOURCE names no source")
    return Path(places[0])


@functools.cache
def version() -> str:
    found = re.search(r"version = '([\d.]+)", (real() / "_version.py").read_text())
    assert found
    return found[1]


@functools.cache
def parsed(root: Path, file: str) -> ast.Module:
    path = root / file
    if not path.exists() and root == STANDIN:
        path = path.parent / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def function(root: Path, file: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    owner, _, called = name.rpartition(".")
    body = class_of(root, file, owner).body if owner else parsed(root, file).body
    found = [n for n in body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    (one,) = (node for node in found if node.name == called)
    return one


def class_of(root: Path, file: str, name: str) -> ast.ClassDef:
    body = parsed(root, file).body
    (one,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    return one


def parameters(given: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[list[str], dict[str, str]]:
    """Names of the positional ones in order, and of those that need not be given the defaults."""
    args = given.args
    positional = [a.arg for a in [*args.posonlyargs, *args.args]]
    defaults = dict(
        zip(reversed(positional), map(ast.unparse, reversed(args.defaults)), strict=False)
    )
    named = {
        a.arg: ast.unparse(d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d
    }
    return positional, defaults | named


@pytest.mark.parametrize(("file", "name"), FUNCTIONS)
def test_functions_are_called_alike(file: str, name: str) -> None:
    ours, its = function(STANDIN, file, name), function(real(), file, name)
    assert type(ours) is type(its)
    ours_at, ours_defaults = parameters(ours)
    its_at, its_defaults = parameters(its)
    if version().startswith(OWN_VERSION):
        assert (ours_at, ours_defaults) == (its_at, its_defaults)
    assert its_at[: len(ours_at)] == ours_at
    for name_, default in ours_defaults.items():
        if name_ not in OPTIONAL_SINCE:
            assert its_defaults[name_] == default
    assert set(its_at) - set(ours_at) <= its_defaults.keys()


@pytest.mark.parametrize(("file", "name"), FIELDS)
def test_fields_are_there(file: str, name: str) -> None:
    ours, its = (names_of(class_of(root, file, name)) for root in (STANDIN, real()))
    assert ours <= its


def names_of(given: ast.ClassDef) -> set[str]:
    annotated = {
        n.target.id
        for n in given.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    plain = {t.id for n in given.body if isinstance(n, ast.Assign) for t in _names(n)}
    return annotated | plain


def _names(given: ast.Assign) -> list[ast.Name]:
    return [target for target in given.targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize(("file", "text"), [*TEXTS, *READ, *NODES])
def test_what_is_looked_for_is_said(file: str, text: str) -> None:
    folder = real() / file.removesuffix("*")
    files = folder.rglob("*.py") if file.endswith("*") else [folder]
    sources = [path.read_text(encoding="utf-8") for path in files]
    # 0.20 imports the library as the module is imported, and then that fails.
    if version().startswith("0.20") and text.startswith("Failed to import"):
        pytest.skip("0.20 raises instead")
    # A text may go on in the next literal of its statement.
    joined = [re.sub(r'"\s*f?"', "", source) for source in sources]
    assert any(text in source for source in joined)


def test_a_later_node_starts_its_workers_as_its_own_command_does() -> None:
    """``vllm serve --headless``: the same calls with the same arguments, in this order."""
    found = ast.walk(function(real(), "entrypoints/cli/serve.py", "run_headless"))
    calls = {ast.unparse(n): n.lineno for n in found if isinstance(n, ast.Call)}
    wanted = [
        "engine_args.create_engine_config(usage_context=usage_context, headless=True)",
        "MultiprocExecutor(vllm_config, monitor_workers=False)",
        "executor.start_worker_monitor(inline=True)",
    ]
    assert calls.keys() >= set(wanted)
    assert sorted(wanted, key=calls.__getitem__) == wanted


def test_its_options_are_those_of_the_table() -> None:
    known = {
        name
        for cls in ("EngineArgs", "AsyncEngineArgs")
        for name in names_of(class_of(real(), "engine/arg_utils.py", cls))
        if not name.startswith("_")
    }
    if version() in VERSIONS:
        assert known <= known_options()


def test_its_options_take_what_the_table_says() -> None:
    """As its own classes say; what the table leaves out of their bounds, another version lacks."""
    own = options(real())
    if version() in VERSIONS:
        assert all(own[name].startswith(kind) for name, kind in kinds().items() if name in own)


def test_each_text_of_the_table_tells_its_cause() -> None:
    said = {
        "Free memory on device cuda:0 (1/79 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 71 GiB).": "gpu.in-use",
        "Cannot auto-fit max_model_len: not enough GPU memory available": "engine.no-memory",
        "To serve at least one request with the model's max seq len (8192),": "engine.no-memory",
    }
    for text, code in said.items():
        assert start_failure([f"ERROR ValueError: {text}"], RuntimeError("x")).code == code
