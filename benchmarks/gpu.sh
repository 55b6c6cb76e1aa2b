#!/usr/bin/env bash
# What only GPUs can show, within minutes: the tests, then the measurements.
#
#   benchmarks/gpu.sh                    both
#   benchmarks/gpu.sh tests              the tests: on two GPUs several at once, in two rounds
#   benchmarks/gpu.sh tests one|several  a round alone: tests that need one GPU, or two
#   benchmarks/gpu.sh tests WORDS…       the tests that WORDS, which go to pytest, leave, in turn
#   benchmarks/gpu.sh bench [WORDS…]     the measurements alone; words go to gpu_end_to_end.py
#   benchmarks/gpu.sh tail [WORDS…]      how a run ends, before a change and after; to gpu_tail.py
#   benchmarks/gpu.sh planner [WORDS…]   what the planner says, and what vLLM does; to planner_gpu.py
#
# PYTHON is one with vllm, torch, transformers, pytest and what hpc-llm needs (default python3);
# SmolLM2 lies in the model cache (`hpc-llm models prepare smollm2-135m`, HPC_LLM_MODEL_CACHE).
# LIMIT_S are the seconds for the tests, and again for the measurements (default 570).
# Logs and results go to OUT (default: the working directory). Two measurements at once, one a GPU:
# each with its own CUDA_VISIBLE_DEVICES, OUT and VLLM_CACHE_ROOT.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
export OUT=${OUT:-$PWD} PYTHONUNBUFFERED=1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"
limit=${LIMIT_S:-570}
until_s=$((SECONDS + limit))
scratch=

# Tests that share a GPU or two in turn; the last group of a round is what the others leave.
# About equal in time: a start of vLLM takes 40 to 60 s, over two nodes 90 to 110 s.
one_a='transformers or started_again or seed_decides'
several_a='later_node'
several_b='two_nodes or two_ranks'

# pytest_of NAME GPUS WORDS…: its log and its report are gpu-tests-NAME.{log,xml}; GPUS may be ''
pytest_of() {
  local name=$1 gpus=$2
  # Plugins that happen to be installed have no part in this.
  local own=(HPC_LLM_GPU_TESTS=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1)
  # Whoever has a GPU to itself has compiled kernels of its own too.
  [ -z "$gpus" ] || own+=(CUDA_VISIBLE_DEVICES="$gpus" VLLM_CACHE_ROOT="$scratch/$name-cache")
  shift 2
  env --chdir="$root" "${own[@]}" \
    timeout --kill-after=10 --signal=INT $((until_s > SECONDS ? until_s - SECONDS : 1)) \
    "$python" -m pytest -p pytest_timeout -p no:cacheprovider tests/gpu -v --durations=0 \
    --basetemp="$scratch/$name" --junitxml="$OUT/gpu-tests-$name.xml" "$@" 2>&1 |
    sed -u "s/^/$name: /" | tee "$OUT/gpu-tests-$name.log"
}

# Both rounds return a code that is not 0 when a group's is not.
round_one() {
  pytest_of one-a "$1" -m gpu -k "$one_a" &
  local first=$! code=0
  pytest_of one-b "$2" -m gpu -k "not ($one_a)" || code=$?
  wait "$first" || code=$?
  return "$code"
}

round_several() {
  pytest_of several-a '' -m multigpu -k "$several_a" &
  local first=$! second code=0
  pytest_of several-b '' -m multigpu -k "($several_b) and not ($several_a)" &
  second=$!
  pytest_of several-c '' -m multigpu -k "not ($several_a) and not ($several_b)" || code=$?
  wait "$first" || code=$?
  wait "$second" || code=$?
  return "$code"
}

# Numbers, as nvidia-smi has them, of the GPUs that may be used.
gpus_seen() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^$/d'
  else
    nvidia-smi --list-gpus | sed -n 's/^GPU \([0-9]*\):.*/\1/p'
  fi
}

# What was chosen, and what of it passed, by the logs: a group that was killed has no report.
summary() {
  local chosen passed
  chosen=$(sed -n -e 's/.*collected .* \([0-9]*\) selected.*/\1/p; t' \
    -e 's/.*collected \([0-9]*\) items\{0,1\}$/\1/p' "$@" | added)
  passed=$(sed -n 's/^[^ ]*: =.* \([0-9]*\) passed.*/\1/p' "$@" | added)
  echo "GPU tests: $passed of $chosen passed, in $((SECONDS - began)) s"
  [ "$passed" -eq "$chosen" ] && [ "$chosen" -gt 0 ]
}

added() {
  awk '{ sum += $1 } END { print sum + 0 }'
}

tests() {
  local gpus code=0 began=$SECONDS
  mapfile -t gpus < <(gpus_seen)
  scratch=$(mktemp -d)
  rm -f "$OUT"/gpu-tests*
  case ${1:-all}/${#gpus[@]} in
    all/0 | all/1) pytest_of one '' -m gpu || code=$? ;;
    all/*)
      round_one "${gpus[0]}" "${gpus[1]}" || code=$?
      round_several || code=$?
      ;;
    one/0 | one/1) pytest_of one '' -m gpu || code=$? ;;
    one/*) round_one "${gpus[0]}" "${gpus[1]}" || code=$? ;;
    several/*) round_several || code=$? ;;
    */0 | */1) pytest_of chosen '' -m gpu "$@" || code=$? ;;
    *) pytest_of chosen '' -m 'gpu or multigpu' "$@" || code=$? ;;
  esac
  (cd "$scratch" && find . -name '*.log' -print0 | tar --null -czf "$OUT/gpu-tests-logs.tgz" -T -)
  rm -rf "$scratch"
  grep -h ': FAILED\|: ERROR' "$OUT"/gpu-tests-*.log
  summary "$OUT"/gpu-tests-*.log || code=$((code ? code : 1))
  return "$code"
}

measured() {
  local script=$1
  shift
  "$python" "$root/benchmarks/$script" --limit-s "$limit" "$@" 2>&1 | tee "$OUT/gpu-bench.log"
}

nvidia-smi
what=${1:-both}
[ "$#" -eq 0 ] || shift
case $what in
  tests) tests "$@" ;;
  bench) measured gpu_end_to_end.py "$@" ;;
  tail) measured gpu_tail.py "$@" ;;
  planner) measured planner_gpu.py "$@" ;;
  both)
    tests
    code=$?
    measured gpu_end_to_end.py && exit "$code"
    ;;
  *)
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | grep '^#'
    exit 2
    ;;
esac
