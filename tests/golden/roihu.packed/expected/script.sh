#!/bin/bash
#SBATCH --job-name=packed
#SBATCH --partition=gpularge
#SBATCH --account=proj42
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=144
#SBATCH --gres=gpu:gh200:4
#SBATCH --exclusive
#SBATCH --array=0-1
#SBATCH --time=0-02:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=/runs/packed/logs/%A_%a.log
# One allocation of an hpc-llm run: it registers itself, starts one step for each of its
# replicas, waits for every one of them and says how it went by its exit code: 0 done,
# 7 failed, 75 stopped early and resumable. `sbatch` this file, or run it with bash inside an
# allocation. Bash alone on purpose: a compute node's own Python may be too old.

run=/runs/packed
plan=0001
cd "$run" || exit 4

# An array task is named by array and index: its SLURM_JOB_ID may be the whole array's.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}}
job=${job:-${SLURM_JOB_ID:-${HPC_LLM_LOCAL_JOB:-local-$(date +%s)-$$}}}
restart=${SLURM_RESTART_COUNT:-0}
# Inside one allocation the script may be started again by hand: each start has its own number.
while [ -e "jobs/$job.$restart.json" ]; do restart=$((restart + 1)); done
unset HPC_LLM_LOCAL_JOB
# An allocation that somebody works in by hand goes on when this script is over.
batch=false
[ "${ENVIRONMENT:-}" != BATCH ] || batch=true # slurmstepd sets it, src/common/env.c

stat=$(<"/proc/$$/stat")
# shellcheck disable=SC2086 # the fields of stat are to be split
set -- ${stat##*) }
entry=jobs/.$job.$restart.$$.tmp
printf '{"job": "%s", "restart": %d, "plan": "%s", "batch": %s, "started": %s, "process": {"host": "%s", "boot_id": "%s", "pid_namespace": "%s", "pid": %d, "start_ticks": %d}}\n' \
  "$job" "$restart" "$plan" "$batch" "$(date +%s.%N)" "$(</proc/sys/kernel/hostname)" \
  "$(</proc/sys/kernel/random/boot_id)" "$(readlink /proc/self/ns/pid)" "$$" "${20}" >"$entry" \
  && ln "$entry" "jobs/$job.$restart.json"
rm -f "$entry"

if [ -e DONE ] || [ -e control/STOP ]; then
  echo "hpc-llm: nothing is left to do, or the run was stopped"
  exit 0
fi

cache=$(mktemp -d "${TMPDIR:?}"/hpc-llm.XXXXXXXX) || exit 4
trap 'rm -rf -- "$cache"' EXIT
export CUDA_CACHE_PATH="$cache"/cuda
export FLASHINFER_WORKSPACE_BASE="$cache"/flashinfer
export TORCHINDUCTOR_CACHE_DIR="$cache"/inductor
export TORCH_EXTENSIONS_DIR="$cache"/torch-extensions
export TRITON_CACHE_DIR="$cache"/triton
export TRTLLM_DG_CACHE_DIR="$cache"/deep-gemm
export VLLM_CACHE_ROOT="$cache"/vllm
export VIRTUAL_ENV=/venvs/vllm
export PATH="$VIRTUAL_ENV/bin:$PATH"
export PYTHONPATH="$run"/lib/0123456789abcdef.zip${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1

start_step() { # replica
  trap '' USR1 # a warning is death to a process that does not expect it yet
  echo "hpc-llm: start $restart" >>"logs/$job.s$1.log"
  exec srun \
    --overlap \
    --relative=0 \
    --nodes=1 \
    --ntasks=1 \
    --ntasks-per-node=1 \
    --cpus-per-task=144 \
    --distribution=block:block \
    --kill-on-bad-exit=1 \
    --label \
    --unbuffered \
    python3 \
    -m \
    launcher.runner.rank \
    --plan "$plan" --replica "$1" --job "$job" --restart "$restart" \
    >>"logs/$job.s$1.log" 2>&1
}

# `wait` returns early when a trapped signal arrives. Whether the process still lives does not
# tell: hours after its end, its id may be another's.
await_step() { # pid
  local code
  while :; do
    signalled=0
    wait "$1"
    code=$?
    [ "$signalled" -eq 1 ] || return "$code"
  done
}

replicas=4
per_allocation=2
first=$((${SLURM_ARRAY_TASK_ID:-0} * per_allocation))
end=$((first + per_allocation < replicas ? first + per_allocation : replicas))

pids=()
# srun started with a signal ignored does not hand it on; Slurm signals the tasks themselves, and
# without --batch not this script.
trap 'signalled=1; scancel --signal=USR1 "$job"' USR1
trap 'signalled=1; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((replica = first; replica < end; replica++)); do
  start_step "$replica" &
  pids+=("$!")
done

# How a step ended is a file that its first rank wrote; its exit code may be the launcher's own,
# and only counts where a full disk took no file.
failed=0 died=0 resumable=0
for ((replica = first; replica < end; replica++)); do
  await_step "${pids[replica - first]}"
  code=$?
  ended=jobs/$job.$restart.s$replica
  if [ -e "$ended.done" ]; then
    :
  elif [ -e "$ended.died" ]; then # before resumable: its first rank may have left for it
    died=1
    sed -n 's/.*"host": "\([^"]*\)".*/\1/p' "$ended.died" >>control/suspects
    echo "hpc-llm: replica $replica died; see logs/$job.s$replica.log" >&2
  elif [ ! -e "$ended.failed" ] && { [ -e "$ended.resumable" ] || [ "$code" -eq 75 ]; }; then
    resumable=1
  else
    failed=1
    echo "hpc-llm: replica $replica failed (its step returned $code); see logs/$job.s$replica.log" >&2
  fi
done

# Replicas are elastic: when the others finished the work, one failure is no failed run.
[ ! -e DONE ] || exit 0
[ "$failed" -eq 0 ] || exit 7
[ "$died" -eq 0 ] || exit 7
[ "$resumable" -eq 0 ] || exit 75
exit 0
