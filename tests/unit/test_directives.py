"""What is asked of Slurm, in the style of each site."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.capabilities import step_kind
from launcher.plan.directives import cpus_per_task, slurm_directives
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Layout, Step
from launcher.spec.rules import read_job, read_site
from launcher.spec.source import parse

JOB = "name: j\nmodel: m\ninput: {path: i}\noutput: {path: o}\n"
OPTIONS = [
    "--job-name",
    "--partition",
    "--account",
    "--qos",
    "--reservation",
    "--nodes",
    "--ntasks-per-node",
    "--cpus-per-task",
    "--gres",
    "--exclusive",
    "--mem",
    "--array",
    "--time",
    "--signal",
    "--no-requeue",
    "--open-mode",
]

WHOLE_NODE = Cut(tp=8)


def asked(
    *,
    cut: Cut = WHOLE_NODE,
    replicas: int = 1,
    engine: str = "tensorrt-llm",
    slots: int = 8,
    cpus: int | None = 96,
    job: str = "",
    scheduler: str = "",
    request: str | None = "--gres=gpu:{n}",
) -> tuple[tuple[str, str | None], ...]:
    gpus = "{model: h100, per_node: 8" + (f', request: "{request}"' if request else "") + "}"
    site = (
        f"name: s\nscheduler: {{type: slurm{scheduler}}}\nlaunch: {{with: srun}}\n"
        f"partitions: {{gpu: {{gpus: {gpus}}}}}\n"
    )
    layout = lay_out(cut, replicas, NodeShape(slots=slots, slots_all=8, has_gpus=True, cpus=cpus))
    return slurm_directives(
        read_job(parse("job.yaml", JOB + job)),
        read_site(parse("site.yaml", site)),
        "gpu",
        layout,
        step(engine, layout),
        time_s=14400,
    )


def step(engine: str, layout: Layout) -> Step:
    kind = step_kind(engine, layout)
    one = kind in ("single", "per-node")
    tasks = 1 if one else layout.cut.ranks // layout.allocation.nodes
    return Step(kind=kind, nodes=layout.allocation.nodes, tasks_per_node=tasks)


def test_whole_nodes_are_asked_for_with_their_memory() -> None:
    job = "resources: {account: a, qos: q, reservation: r}\n"
    assert asked(cut=Cut(tp=8, pp=2), replicas=3, job=job) == (
        ("--job-name", "j"),
        ("--partition", "gpu"),
        ("--account", "a"),
        ("--qos", "q"),
        ("--reservation", "r"),
        ("--nodes", "2"),
        ("--ntasks-per-node", "8"),
        ("--cpus-per-task", "12"),
        ("--gres", "gpu:8"),
        ("--exclusive", None),
        ("--mem", "0"),
        ("--array", "0-2"),
        ("--time", "0-04:00:00"),
        ("--signal", "B:USR1@300"),
        ("--no-requeue", None),
        ("--open-mode", "append"),
    )


def test_part_of_a_node_is_not_asked_for_alone() -> None:
    found = dict(asked(cut=Cut(tp=2), replicas=2))
    assert found["--gres"] == "gpu:4"
    assert {"--exclusive", "--mem", "--array"}.isdisjoint(found)


def test_an_array_may_be_held_to_a_number_of_tasks_at_once() -> None:
    job = "resources: {at_once: 2}\n"
    assert dict(asked(replicas=5, job=job))["--array"] == "0-4%2"
    assert "--array" not in dict(asked(replicas=1, job=job))


def test_packed_replicas_ask_for_the_tasks_of_all_of_them() -> None:
    assert dict(asked(cut=Cut(tp=2), replicas=4))["--ntasks-per-node"] == "8"


def test_one_process_that_starts_its_workers_asks_for_the_cpus_of_all_of_them() -> None:
    found = dict(asked(cut=Cut(tp=4), replicas=2, engine="vllm"))
    assert (found["--ntasks-per-node"], found["--cpus-per-task"]) == ("2", "48")


@pytest.mark.parametrize(
    ("request_", "option", "value"),
    [
        ("--gres=gpu:{n}", "--gres", "gpu:8"),
        ("--gres=gpu:h100:{n}", "--gres", "gpu:h100:8"),
        ("--gpus-per-node={n}", "--gpus-per-node", "8"),
    ],
)
def test_gpus_are_asked_for_in_the_words_of_the_site(
    request_: str, option: str, value: str
) -> None:
    assert dict(asked(request=request_))[option] == value


def test_a_site_that_gives_whole_nodes_is_not_asked_for_gpus() -> None:
    assert not [o for o, _ in asked(request=None) if "gpu" in o or o == "--gres"]


def test_unknown_cpus_are_not_asked_for() -> None:
    assert "--cpus-per-task" not in dict(asked(cpus=None))


def test_the_warning_comes_when_the_job_wants_it() -> None:
    job = "limits: {warn_before: 10m}\n"
    assert dict(asked(job=job))["--signal"] == "B:USR1@600"


@pytest.mark.parametrize(
    ("restart", "flag"),
    [("requeue", "--requeue"), ("chain", "--no-requeue"), ("none", "--no-requeue")],
)
def test_only_a_site_that_requeues_lets_slurm_do_it(restart: str, flag: str) -> None:
    found = [o for o, _ in asked(scheduler=f", restart: {restart}") if "requeue" in o]
    assert found == [flag]


@given(st.sets(st.sampled_from([o for o in OPTIONS if o != "--gres"])))
def test_a_rejected_option_is_never_given_and_every_other_is(rejected: set[str]) -> None:
    job = "resources: {account: a, qos: q, reservation: r}\n"
    listed = ", ".join(f'"{option}"' for option in sorted(rejected))
    found = asked(cut=Cut(tp=8), replicas=2, job=job, scheduler=f", reject: [{listed}]")
    assert [option for option, _ in found] == [o for o in OPTIONS if o not in rejected]


@given(
    cut=st.builds(Cut, tp=st.integers(1, 8), pp=st.integers(1, 4)),
    replicas=st.integers(1, 9),
    engine=st.sampled_from(["tensorrt-llm", "echo"]),
)
def test_tasks_and_cpus_never_exceed_what_a_node_has(cut: Cut, replicas: int, engine: str) -> None:
    found = dict(asked(cut=cut, replicas=replicas, engine=engine))
    tasks, cpus = int(found["--ntasks-per-node"] or 0), int(found["--cpus-per-task"] or 0)
    assert tasks * cpus <= 96
    assert tasks <= 8
    # --gpus-per-task and --ntasks-per-gpu hide GPUs from the ranks (srun(1)).
    assert {"--gpus-per-task", "--ntasks-per-gpu"}.isdisjoint(found)


def test_cpus_of_a_task_are_those_of_its_ranks() -> None:
    layout = lay_out(Cut(tp=4), 1, NodeShape(slots=8, slots_all=8, has_gpus=True, cpus=64))
    single = Step(kind="single", nodes=1, tasks_per_node=1)
    leader = Step(kind="leader", nodes=1, tasks_per_node=4)
    assert (cpus_per_task(layout, single), cpus_per_task(layout, leader)) == (32, 8)


def test_a_task_a_node_has_the_cpus_of_the_ranks_on_its_node() -> None:
    found = dict(asked(cut=Cut(tp=4, pp=4), engine="vllm", slots=4))
    assert found["--nodes"] == "4"
    assert (found["--ntasks-per-node"], found["--cpus-per-task"]) == ("1", "48")
