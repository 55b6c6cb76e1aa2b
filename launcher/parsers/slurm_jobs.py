"""Jobs as ``scontrol``, ``squeue``, ``sacct`` and their ``--json`` give them, in one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_json import (
    dig,
    json_list,
    json_number,
    json_seconds,
    json_text,
    json_tres,
    json_whole,
    json_words,
)
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import Tres, read_count, read_job_state, read_time, read_tres

__all__ = ["Job", "Jobs", "read_job_rows", "read_jobs", "read_jobs_json"]


@dataclass(frozen=True, slots=True)
class Job:
    """One job, or one task of an array; what was not told is None.

    Attributes
    ----------
    id
        As Slurm prints it: ``12``, ``12_3``, ``12_[4-9]``. Steps (``12.batch``) are no jobs.
    state
        The base word, such as ``RUNNING``; ``flags`` what came with it.
    nodes
        List of names as text; None while there are none.
    tres
        What it was given; ``requested`` is what it asked for, which lacks GPUs that came with
        ``--exclusive``.
    exit_code
        Code and signal.
    """

    id: str
    name: str | None
    state: str | None
    flags: frozenset[str]
    reason: str | None
    partition: str | None
    account: str | None
    qos: str | None
    nodes: str | None
    node_count: int | None
    time_limit_s: float | None
    tres: Tres
    requested: Tres
    restarts: int | None
    exit_code: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs, and lines that belong to none."""

    jobs: tuple[Job, ...]
    unread: tuple[str, ...]


def read_jobs(text: str) -> Jobs:
    """Read ``scontrol show job``, with or without ``--oneliner``.

    Raises
    ------
    ParseError
        They are records of something else.
    """
    blocks = read_blocks(text, "JobId")
    return Jobs(tuple(map(_from_block, blocks.records)), blocks.unread)


def read_jobs_json(text: str) -> Jobs:
    """Read ``squeue --json``, ``sacct --json`` or ``scontrol show job --json``.

    Raises
    ------
    ParseError
        It is no such JSON.
    """
    found = json_list(text, "jobs")
    jobs = tuple(job for record in found if (job := _from_json(record)))
    unread = [str(record)[:80] for record in found if json_number(record.get("job_id")) is None]
    return Jobs(jobs, tuple(unread))


def read_job_rows(text: str, columns: tuple[str, ...] = ()) -> Jobs:
    """Read lines of ``squeue -o``, ``squeue -O`` or ``sacct -P`` with ``|`` between the cells.

    ``columns`` are the names that the commands give them, for output without heads. Lines of
    steps are left out: they repeat the allocation of their job.
    """
    rows = read_rows(text, columns)
    found = (_from_row(row) for row in rows.rows)
    return Jobs(tuple(job for job in found if job and "." not in job.id), rows.unread)


def _from_block(block: Mapping[str, str]) -> Job:
    array, task = block.get("ArrayJobId"), block.get("ArrayTaskId")
    given = block.get("AllocTRES") or block.get("TRES", "")
    pending = block.get("JobState") == "PENDING"
    return Job(
        id=f"{array}_{task}" if array and task else block["JobId"],
        name=json_text(block.get("JobName")),
        state=read_job_state(block.get("JobState", "")) or None,
        flags=frozenset(),
        reason=json_text(block.get("Reason")),
        partition=json_text(block.get("Partition")),
        account=json_text(block.get("Account")),
        qos=json_text(block.get("QOS")),
        nodes=json_text(block.get("NodeList")),
        node_count=read_count(block.get("NumNodes")),
        time_limit_s=read_time(block.get("TimeLimit", "")),
        tres=read_tres("" if pending else given),
        requested=read_tres(block.get("ReqTRES") or (given if pending else "")),
        restarts=read_count(block.get("Restarts")),
        exit_code=_exit(block.get("ExitCode")),
    )


def _from_json(record: Mapping[str, Any]) -> Job | None:
    """Both forms: of the controller (``job_state``) and of the accounting (``state``)."""
    number = json_whole(record.get("job_id"))
    if number is None:
        return None
    states = json_words(dig(record, "state", "current")) or json_words(record.get("job_state"))
    accounted = dig(record, "tres")
    requested = dig(accounted, "requested") if accounted else record.get("tres_req_str")
    nodes = json_text(record.get("nodes")) or json_text(dig(record, "job_resources", "nodes"))
    return Job(
        id=_json_id(record, number),
        name=json_text(record.get("name")),
        state=states[0].upper() if states else None,
        flags=frozenset(word.upper() for word in states[1:]),
        reason=json_text(dig(record, "state", "reason")) or json_text(record.get("state_reason")),
        partition=json_text(record.get("partition")),
        account=json_text(record.get("account")),
        qos=json_text(record.get("qos")),
        nodes=nodes,
        node_count=json_whole(_first(record.get("node_count"), record.get("allocation_nodes"))),
        time_limit_s=json_seconds(_first(record.get("time_limit"), dig(record, "time", "limit"))),
        tres=json_tres(dig(accounted, "allocated") if accounted else record.get("tres_alloc_str")),
        requested=json_tres(requested),
        restarts=json_whole(record.get("restart_cnt")),
        exit_code=_json_exit(record.get("exit_code")),
    )


def _json_id(record: Mapping[str, Any], number: int) -> str:
    """Tasks of an array have an id of their own, under which no command shows them."""
    array = json_whole(_first(record.get("array_job_id"), dig(record, "array", "job_id")))
    task = json_whole(_first(record.get("array_task_id"), dig(record, "array", "task_id")))
    return f"{array}_{task}" if array and task is not None else str(number)


def _from_row(row: Mapping[str, str]) -> Job | None:
    if not (id_ := row.get("JOBID") or row.get("ARRAY_JOB_ID") or row.get("JOBIDRAW")):
        return None
    state = row.get("STATE", "")
    return Job(
        id=id_,
        name=json_text(row.get("NAME") or row.get("JOBNAME")),
        state=read_job_state(state) or None,
        flags=frozenset(),
        reason=json_text(row.get("REASON")),
        partition=json_text(row.get("PARTITION")),
        account=json_text(row.get("ACCOUNT")),
        qos=json_text(row.get("QOS")),
        nodes=json_text(row.get("NODELIST")),
        node_count=read_count(row.get("NODES") or row.get("NNODES") or row.get("NUMNODES")),
        time_limit_s=read_time(row.get("TIME_LIMIT") or row.get("TIMELIMIT") or ""),
        tres=read_tres(row.get("TRES_ALLOC") or row.get("TRES-ALLOC") or row.get("ALLOCTRES", "")),
        requested=read_tres(row.get("REQTRES", "")),
        restarts=read_count(row.get("RESTARTS")),
        exit_code=_exit(row.get("EXITCODE") or row.get("EXIT_CODE")),
    )


def _first(one: Any, other: Any) -> Any:
    return other if one is None else one


def _exit(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", text or "")
    return (int(match[1]), int(match[2])) if match else None


def _json_exit(value: Any) -> tuple[int, int] | None:
    """Until 0.0.38 a wait status in one number."""
    if not isinstance(value, Mapping):
        status = json_whole(value)
        return None if status is None else (status >> 8 & 255, status & 127)
    code = json_whole(value.get("return_code"))
    signal = (
        json_whole(dig(value, "signal", "id")) or json_whole(dig(value, "signal", "signal_id")) or 0
    )
    return None if code is None else (code, signal)
