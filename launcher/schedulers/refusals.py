"""Which key of the job or site file made sbatch refuse, told from its words."""

from __future__ import annotations

__all__ = ["cause_of"]

# Texts of Slurm's errors (slurm, ``src/common/slurm_errno.c``), and what to look at.
_CAUSES = (
    ("invalid partition", "resources.partition: does the cluster have it? (sinfo -s)"),
    ("Invalid account", "resources.account, and whether it may use the partition (sacctmgr)"),
    ("Invalid qos", "resources.qos, and whether the account has it"),
    ("feature specification", "resources.constraint, and select.constraint in the site file"),
    ("--segment", "topology.nodes of the partition, and scheduler.version, in the site file"),
    ("node name", "resources.exclude: does the cluster have these nodes? (sinfo -N)"),
    ("time limit", "resources.time, and time_limit of the partition in the site file"),
    ("reservation", "resources.reservation: its name, and whether it is yours and active"),
    ("Invalid generic resource", "gpus.request of the partition in the site file"),
    (
        "node configuration is not available",
        "tp, pp and gpus_per_node, and the site's gpus and cpus",
    ),
    ("node count specification", "tp * pp and replicas: too many nodes for the partition"),
    ("Memory specification", "the site file: add --mem to scheduler.reject"),
    ("Invalid job array", "replicas: more than MaxArraySize; state it as scheduler.max_array_size"),
    (
        "accounting/QOS policy",
        "what your account or QOS still allows (sacctmgr show assoc, sshare)",
    ),
    ("too many", "how many jobs you may have queued; wait, or lower replicas"),
)


def cause_of(message: str) -> str | None:
    """A hint for sbatch's ``message``, or None when it is none of the known ones."""
    lower = message.lower()
    known = (hint for text, hint in _CAUSES if text.lower() in lower)
    hint = next(known, None)
    return f"look at {hint}" if hint else None
