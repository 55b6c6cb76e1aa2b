# What one node tells, each command into a file of its own below $place: `hpc-llm site discover`
# puts its settings (place, partition, login_tmpdir) before this.
set -u
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin:/opt/cray/bin"

# record FILE COMMAND…: its output, empty if it prints nothing or fails; no file without the command.
record() {
  local file=$1 path
  shift
  path=$(type -P "$1") || return 0
  shift
  timeout -k 5 30 "$path" "$@" >"$place/$file.part" 2>/dev/null </dev/null
  mv -f "$place/$file.part" "$place/$file"
}

# The ports in the form of ibstat, for nodes that do not have it.
ports() {
  local device port state physical rate
  for device in /sys/class/infiniband/*; do
    [[ -d "$device/ports" ]] || continue
    printf "CA '%s'\n" "${device##*/}"
    for port in "$device"/ports/*; do
      state=$(<"$port/state") physical=$(<"$port/phys_state") rate=$(<"$port/rate")
      state=${state#*: } physical=${physical#*: }
      case $state in ACTIVE) state=Active ;; DOWN) state=Down ;; esac
      printf '\tPort %s:\n\t\tState: %s\n\t\tPhysical state: %s\n\t\tRate: %s\n\t\tLink layer: %s\n' \
        "${port##*/}" "$state" "$physical" "${rate%% *}" "$(<"$port/link_layer")"
    done
  done
}

filesystem() { df --output=fstype -- "$1" 2>/dev/null | tail -n 1; }

reached() { timeout -k 1 8 bash -c "exec 3<>/dev/tcp/$1/443" 2>/dev/null; }

facts() {
  echo "partition=$partition"
  echo "host=${SLURMD_NODENAME:-$(hostname -s)}"
  echo "login_tmpdir=$login_tmpdir"
  if [[ -n "${SLURM_TMPDIR:-}" ]]; then
    echo "slurm_tmpdir=$SLURM_TMPDIR"
    echo "slurm_tmpdir_fs=$(filesystem "$SLURM_TMPDIR")"
  fi
  if [[ -n "${TMPDIR:-}" ]]; then
    echo "tmpdir=$TMPDIR"
    echo "tmpdir_fs=$(filesystem "$TMPDIR")"
  fi
  echo "memlock_kib=$(ulimit -l)"
  echo "shm_kib=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)"
  echo "proxy=${https_proxy:-${HTTPS_PROXY:-}}"
  if reached huggingface.co || reached github.com; then echo internet=yes; else echo internet=no; fi
  local names=() entry
  for entry in /sys/class/infiniband/*; do [[ -e "$entry" ]] && names+=("${entry##*/}"); done
  echo "rdma=${names[*]:-none}"
  names=()
  for entry in /sys/class/cxi/*; do [[ -e "$entry" ]] && names+=("${entry##*/}"); done
  echo "cxi=${names[*]:-}"
  names=()
  for entry in /sys/class/net/hsn*; do
    [[ -e "$entry" ]] && names+=("${entry##*/}:$(cat "$entry/speed" 2>/dev/null)")
  done
  echo "hsn=${names[*]:-}"
}

record nvidia-smi.csv nvidia-smi --query-gpu=name,memory.total,mig.mode.current --format=csv,noheader
record nvidia-smi-topo.txt nvidia-smi topo -m
record ibstat.txt ibstat
[[ -s "$place/ibstat.txt" ]] || ports >"$place/ibstat.txt"
record ibdev2netdev.txt ibdev2netdev
record lscpu.txt lscpu
record numactl.txt numactl --hardware
record df.txt df -hT
type -P apptainer singularity enroot mpirun >"$place/commands.txt"
record mpirun.txt mpirun --version
facts >"$place/node.txt"
: >"$place/done"
