#!/usr/bin/env bash
# What only GPUs can show, within minutes: the tests, then the measurements.
#
#   benchmarks/gpu.sh                    both
#   benchmarks/gpu.sh tests [WORDS…]     the tests alone; words go to pytest
#   benchmarks/gpu.sh bench [WORDS…]     the measurements alone; words go to gpu_end_to_end.py
#
# PYTHON is one with vllm, torch, transformers, pytest and what hpc-llm needs (default python3);
# SmolLM2 lies in the model cache (`hpc-llm models prepare smollm2-135m`, HPC_LLM_MODEL_CACHE).
# Logs and results go to OUT (default: the working directory). Two measurements at once, one a GPU:
# each with its own CUDA_VISIBLE_DEVICES, OUT and VLLM_CACHE_ROOT.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
export OUT=${OUT:-$PWD} PYTHONUNBUFFERED=1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"
# Seconds for each of the two.
limit=${LIMIT_S:-570}

tests() {
  local gpus marks scratch code
  gpus=$(nvidia-smi --list-gpus | grep -c '^GPU')
  marks=gpu
  [ "$gpus" -lt 2 ] || marks="gpu or multigpu"
  scratch=$(mktemp -d)
  # Plugins that happen to be installed have no part in this.
  (cd "$root" && HPC_LLM_GPU_TESTS=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
    timeout --kill-after=10 --signal=INT "$limit" \
    "$python" -m pytest -p pytest_timeout -p no:cacheprovider tests/gpu -m "$marks" -v \
    --durations=0 --basetemp="$scratch/tests" --junitxml="$OUT/gpu-tests.xml" "$@" 2>&1) |
    tee "$OUT/gpu-tests.log"
  code=$?
  (cd "$scratch" && find . -name '*.log' -print0 | tar --null -czf "$OUT/gpu-tests-logs.tgz" -T -)
  rm -rf "$scratch"
  return "$code"
}

bench() {
  "$python" "$root/benchmarks/gpu_end_to_end.py" --limit-s "$limit" "$@" 2>&1 |
    tee "$OUT/gpu-bench.log"
}

nvidia-smi
what=${1:-both}
[ "$#" -eq 0 ] || shift
case $what in
  tests) tests "$@" ;;
  bench) bench "$@" ;;
  both)
    tests
    code=$?
    bench && exit "$code"
    ;;
  *)
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | grep '^#'
    exit 2
    ;;
esac
