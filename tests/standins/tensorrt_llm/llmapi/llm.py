"""As ``tensorrt_llm/llmapi/llm.py`` of 1.2: what it raises when, over an executor (see `proxy`)."""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path
from typing import Any

from .._utils import visible_gpus
from ..executor.proxy import Executor, create
from ..executor.result import CompletionOutput, GenerationResult, IterationResult
from ..executor.utils import RequestError, get_spawn_proxy_process_env
from ..executor.worker import Start
from ..logger import logger
from ..mapping import Mapping
from ..sampling_params import SamplingParams
from ..tokenizer import TransformersTokenizer
from .llm_args import TENSORRT_ONLY, TorchLlmArgs
from .mpi_session import create_session

__all__ = ["LLM", "CompletionOutput", "RequestError", "RequestOutput"]

RequestOutput = GenerationResult
# ``llmapi/mpi_session.py`` @cc4777e9, split_mpi_env
_OF_MPI = (
    *("OMPI_", "PMIX_", "PMI_", "SLURM_", "MPI_", "UCX_", "I_MPI_", "HYDRA_", "KMP_"),
    *("MPICH_", "MV2_", "CRAY_"),
)


class LLM:
    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._executor: Executor | None = None
        if wrong := sorted(TENSORRT_ONLY & kwargs.keys()):
            raise ValueError(
                "The following arguments are specific to TensorRT backend and cannot be used with "
                f"PyTorch backend: {wrong}.\nPlease use 'from tensorrt_llm._tensorrt_engine import "
                "LLM' instead to use the TensorRT backend."
            )
        named = locals()
        try:
            self.args = TorchLlmArgs(**{name: named[name] for name in _NAMED}, **kwargs)
            start = self._start()
        except Exception as exc:
            logger.error(f"Failed to parse the arguments for the LLM constructor: {exc}")
            raise
        session = None
        if start.world > 1:
            self._check_devices(start)
            logger.info(f"start MpiSession with {start.world} workers")
            session = create_session(start.world)
        self.tokenizer = self._load_tokenizer()
        if get_spawn_proxy_process_env():
            found = [name for name in os.environ if name.startswith(_OF_MPI)]
            assert not found, f"stand-in: the proxy sees {found}"
        self._executor = create(start, session)
        atexit.register(self.shutdown)

    def _start(self) -> Start:
        args = self.args
        path = Path(args.model)
        if not path.is_dir():
            raise ValueError(f"stand-in: {path} is no directory, and there is no hub")
        config = json.loads((path / "config.json").read_bytes())
        how_path = path / "standin.cfg"
        gpus = args.gpus_per_node
        if gpus is None:
            gpus = max(1, len(visible_gpus()))
            logger.warning(f"Using default gpus_per_node: {gpus}")
        start = Start(
            model=str(path),
            tp=args.tensor_parallel_size,
            pp=args.pipeline_parallel_size,
            ep=args.moe_expert_parallel_size or -1,
            gpus_per_node=gpus,
            max_batch_size=args.max_batch_size or 2048,
            max_num_tokens=args.max_num_tokens or 8192,
            max_seq_len=args.max_seq_len or config.get("max_position_embeddings", 2048),
            kv_fraction=args.kv_cache_config.free_gpu_memory_fraction,
            kv_max_tokens=args.kv_cache_config.max_tokens,
            stats=args.enable_iter_perf_stats,
            cuda_graphs=args.cuda_graph_config is not None,
            how=json.loads(how_path.read_bytes()) if how_path.exists() else {},
        )
        Mapping(start.world, 0, gpus, tp_size=start.tp, pp_size=start.pp, moe_ep_size=start.ep)
        return start

    def _check_devices(self, start: Start) -> None:
        nodes = -(-start.world // start.gpus_per_node)
        if len(visible_gpus()) < start.world // nodes:
            raise RuntimeError(
                f"Only {len(visible_gpus())} GPUs are available, but {start.world} are required."
            )

    def _load_tokenizer(self) -> TransformersTokenizer | None:
        if self.args.skip_tokenizer_init:
            return None
        path = Path(str(self.args.tokenizer or self.args.model))
        if not (path / "tokenizer_config.json").exists():
            raise OSError(f"Can't load tokenizer for '{path}'")
        return TransformersTokenizer()

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        **_: Any,
    ) -> RequestOutput:
        if self._executor is None or self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        params = self._prepare(sampling_params)
        if params.n > self.args.max_batch_size:
            raise ValueError(
                f"SamplingParams.n ({params.n}) should not exceed max_batch_size "
                f"({self.args.max_batch_size})"
            )
        ids, prompt = self._prompt(inputs, params)
        self._check_arguments(len(ids))
        decode = self.tokenizer.decode if self.tokenizer is not None else None
        result = self._executor.submit(ids, params, decode)
        result.prompt = prompt
        return result

    def generate(
        self, inputs: Any, sampling_params: Any = None, use_tqdm: bool = True
    ) -> RequestOutput | list[RequestOutput]:
        if isinstance(inputs, (str, dict)) or isinstance(inputs[0], int):
            return self.generate_async(inputs, sampling_params).result()
        given = sampling_params if isinstance(sampling_params, list) else None
        asked = [
            self.generate_async(each, given[i] if given else sampling_params)
            for i, each in enumerate(inputs)
        ]
        return [result.result() for result in asked]

    def _prepare(self, params: SamplingParams | None) -> SamplingParams:
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise TypeError(
                f"The sampling_params must be type SamplingParams or None, but got {type(params)}"
            )
        if self.tokenizer is not None:
            params._setup(self.tokenizer)
        elif params.end_id is None:
            raise ValueError(
                "tokenizer is required to reset end_id if it is None, or you can explicitly "
                "specify the end_id for sampling_params"
            )
        return params

    def _prompt(self, inputs: Any, params: SamplingParams) -> tuple[list[int], str | None]:
        if isinstance(inputs, dict):
            inputs = (
                inputs["prompt_token_ids"] if "prompt_token_ids" in inputs else inputs["prompt"]
            )
        if isinstance(inputs, str):
            if self.tokenizer is None:
                raise ValueError("tokenizer is required to tokenize string prompt")
            return self.tokenizer.encode(inputs, params.add_special_tokens), inputs
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], int):
            return inputs, None
        raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")

    def _check_arguments(self, length: int) -> None:
        """The prompt alone; longer answers are cut by max_seq_len."""
        if not self.args.enable_chunked_prefill and length > self.args.max_num_tokens:
            raise RequestError(
                f"The sum of prompt length ({float(length)}), query length (0) should not exceed "
                f"max_num_tokens ({self.args.max_num_tokens})"
            )

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        return self._stats(timeout).get_results()

    def get_stats_async(self, timeout: float | None = 2) -> IterationResult:
        return self._stats(timeout)

    def _stats(self, timeout: float | None) -> IterationResult:
        assert self._executor is not None
        found = self._executor.iter_stats or IterationResult()
        found.set_timeout(2 if timeout is None else timeout)
        return found

    def shutdown(self) -> None:
        if self._executor is not None:
            executor, self._executor = self._executor, None
            executor.shutdown()

    def __enter__(self) -> LLM:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __getstate__(self) -> None:
        raise RuntimeError("LLM object can not be pickled.")


_NAMED = (
    *("model", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code"),
    *("tensor_parallel_size", "dtype", "revision", "tokenizer_revision"),
)
