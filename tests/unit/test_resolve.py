"""Every way in which a job cannot run on a site, each at its place; and where values come from."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import PlanError, Problem
from launcher.models.catalogue import BUILTIN
from launcher.plan.resolve import Facts, Resolution, resolve
from launcher.plan.types import Step, StepKind, WorkRuntime
from launcher.spec.rules import read_job, read_site
from launcher.spec.source import overlay, parse, with_setting

SHORT_JOB = """\
name: j
model: m
engine: {engine}
input: {{path: in.jsonl}}
output: {{path: out}}
"""
# Lines 1 to 5; what a test adds begins in line 6.
SITE = """\
name: here
scheduler: {type: slurm}
launch: {with: srun, mpi: pmix}
container: {runtime: pyxis}
"""
GPU = """\
partitions:
  gpu:
    nodes: 4
    time_limit: 1d
    cpus: {count: 96}
    gpus: {model: h100, per_node: 8, topology: all-to-all, request: "--gres=gpu:{n}"}
"""
CPU = "partitions: {cpu: {nodes: 2, slots: 4, time_limit: 1d}}\n"
BOTH = GPU + "  cpu: {nodes: 2, slots: 4, time_limit: 1d}\n"


def resolved(
    job: str = "",
    site: str = SITE + GPU,
    *,
    engine: str = "tensorrt-llm",
    settings: tuple[str, ...] = (),
    defaults: str | None = None,
    **facts: Any,
) -> Resolution:
    job_source = parse("job.yaml", SHORT_JOB.format(engine=engine) + job)
    for setting in settings:
        job_source = with_setting(job_source, setting)
    if defaults is not None:
        job_source = overlay(job_source, parse("defaults.yaml", defaults))
    job_source = overlay(job_source, parse("sizes.yaml", "parallelism: {tp: 1}\nreplicas: 1\n"))
    site_source = parse("site.yaml", site)
    return resolve(
        read_job(job_source),
        read_site(site_source),
        job_source=job_source,
        site_source=site_source,
        facts=Facts(**facts),
    )


def problems(*args: Any, **kwargs: Any) -> tuple[Problem, ...]:
    with pytest.raises(PlanError) as caught:
        resolved(*args, **kwargs)
    return caught.value.problems


def errors(*args: Any, **kwargs: Any) -> list[Problem]:
    return [p for p in problems(*args, **kwargs) if p.severity == "error"]


def only(*args: Any, **kwargs: Any) -> tuple[str, str]:
    """Code and ``line:column`` of the one problem there is."""
    (problem,) = errors(*args, **kwargs)
    assert problem.where is not None
    assert problem.hint
    assert not problem.message.endswith(".")
    return problem.code, str(problem.where)


def sources(found: Resolution) -> dict[str, tuple[str, str]]:
    return {d.key: (d.value, d.source) for d in found.decisions}


def runtime(job: str, site: str, **facts: Any) -> WorkRuntime:
    engines = f"engines: {{tensorrt-llm: {{{site}}}}}\n"
    return resolved(f"runtime: {{{job}}}\n", SITE + GPU + engines, **facts).plan.runtime


# What cannot be


def test_a_site_of_several_partitions_wants_one_named() -> None:
    assert only(site=SITE + BOTH) == ("plan.partition-missing", "job.yaml:1:1")
    assert "gpu, cpu" in str(problems(site=SITE + BOTH)[0].hint)


def test_a_partition_the_site_has_not_is_refused_where_it_is_named() -> None:
    found = only("resources: {partition: gpus}\n")
    assert found == ("plan.partition-unknown", "job.yaml:6:24")
    assert "'gpus'" in problems("resources: {partition: gpus}\n")[0].message


def test_more_gpus_a_node_than_it_has_are_refused() -> None:
    found = only("resources: {gpus_per_node: 9}\n")
    assert found == ("plan.gpus-per-node", "job.yaml:6:28")


def test_gpus_of_a_partition_without_gpus_are_refused() -> None:
    found = only("resources: {gpus_per_node: 1}\n", SITE + CPU, engine="echo")
    assert found == ("plan.no-gpus", "job.yaml:6:28")


OLD = GPU.replace("h100", "a100")


def test_a_format_that_the_gpus_lack_is_refused_at_the_model() -> None:
    shape = BUILTIN["llama-3.1-405b-fp8"]
    job = "parallelism: {tp: 8, pp: 2}\n"
    assert only(job, SITE + OLD, shape=shape) == ("plan.gpu-quantisation", "job.yaml:2:8")
    assert resolved(job, SITE + GPU, shape=shape).warnings == ()
    assert resolved(job, SITE + OLD, shape=shape, engine="vllm").warnings == ()


def test_a_model_that_tensorrt_llm_has_not_is_refused_for_it_alone() -> None:
    shape = BUILTIN["deepseek-v2"]
    job = "parallelism: {tp: 8}\n"
    assert only(job, shape=shape) == ("model.architecture", "job.yaml:2:8")
    assert resolved(job, shape=shape, engine="vllm").warnings == ()


def test_attention_that_is_not_cut_has_no_heads_to_divide() -> None:
    shape = BUILTIN["phi-4"]
    job = "parallelism: {tp: 4}\n"
    assert only(job, shape=shape) == ("plan.tp-kv-heads", "job.yaml:6:14")
    whole = job + "engine_options: {enable_attention_dp: true}\n"
    assert resolved(whole, shape=shape).warnings == ()


def test_the_layers_of_the_stages_are_counted_where_they_stand() -> None:
    job = "parallelism: {tp: 4, pp: 2}\nengine_options: {pp_partition: [40, 41]}\n"
    found = only(job, shape=BUILTIN["llama-3.1-70b"])
    assert found == ("engine.options", "job.yaml:7:32")


SIZED = GPU.replace("per_node: 8", "memory: 80GB, per_node: 8")


@pytest.mark.parametrize("engine", ["tensorrt-llm", "transformers", "vllm"])
def test_a_model_that_the_gpus_do_not_hold_is_refused_where_it_is_cut(engine: str) -> None:
    shape = BUILTIN["llama-3.1-70b"]
    given: dict[str, Any] = {"shape": shape, "engine": engine}
    job = "parallelism: {tp: 1}\n"
    assert only(job, SITE + SIZED, **given) == ("plan.gpu-memory", "job.yaml:6:14")
    assert resolved("parallelism: {tp: 4}\n", SITE + SIZED, **given).warnings == ()
    assert resolved(job, SITE + GPU, **given).warnings == ()  # a partition that does not tell


def test_a_model_that_the_gpus_may_hold_is_planned_with_a_warning() -> None:
    shape = BUILTIN["llama-3.1-70b"]
    steps = "engine_options: {max_batch_size: 512, max_num_tokens: 8192}\n"
    job = "parallelism: {tp: 2}\n"
    (warning,) = resolved(job + steps, SITE + SIZED, shape=shape).warnings
    assert (warning.code, str(warning.where)) == ("plan.gpu-memory", "job.yaml:6:14")
    assert resolved(job, SITE + SIZED, shape=shape).warnings == ()  # with smaller steps it does


def test_a_cut_that_is_no_cut_is_not_counted() -> None:
    shape = BUILTIN["llama-3.1-70b"]
    found = errors("parallelism: {tp: 1, ep: 2}\n", SITE + SIZED, shape=shape)
    assert {problem.code for problem in found} == {"plan.ep-tp", "plan.ep-dense"}


def test_stages_that_the_job_spreads_are_counted_so() -> None:
    shape = BUILTIN["llama-3.1-70b"]
    job = "parallelism: {tp: 1, pp: 4}\nenv: {VLLM_PP_LAYER_PARTITION: '50,10,10,10'}\n"
    found = only(job, SITE + SIZED, shape=shape, engine="vllm")
    assert found == ("plan.gpu-memory", "job.yaml:6:14")


@pytest.mark.parametrize("engine", ["tensorrt-llm", "vllm"])
def test_an_engine_for_gpus_needs_a_partition_with_them(engine: str) -> None:
    assert only(site=SITE + CPU, engine=engine) == ("plan.no-gpus", "job.yaml:3:9")


@pytest.mark.parametrize("engine", ["transformers", "echo"])
def test_the_other_engines_run_on_cpus_too(engine: str) -> None:
    placements = resolved(site=SITE + CPU, engine=engine).plan.layout.placements
    assert [p.gpu for p in placements] == [None]


@pytest.mark.parametrize("axis", ["pp", "ep"])
def test_an_engine_is_not_cut_in_ways_it_cannot_do(axis: str) -> None:
    job = "parallelism: {tp: 2, pp: 1, ep: 1}\n".replace(f"{axis}: 1", f"{axis}: 2")
    found = [(p.code, str(p.where)) for p in problems(job, engine="transformers")]
    assert found[0] == ("plan.engine-capability", f"job.yaml:6:{job.index(f'{axis}: 2') + 5}")
    assert {code for code, _ in found} <= {"plan.engine-capability", "plan.ep-tp"}


@pytest.mark.parametrize(
    ("sizes", "kind", "nodes", "tasks_per_node"),
    [
        ("{tp: 8}", "single", 1, 1),
        ("{tp: 8, pp: 2}", "per-node", 2, 1),
        ("{tp: 4, pp: 3}", "per-node", 3, 1),
    ],
)
def test_an_engine_that_starts_its_own_workers_has_one_task_a_node(
    sizes: str, kind: StepKind, nodes: int, tasks_per_node: int
) -> None:
    plan = resolved(f"parallelism: {sizes}\n", engine="vllm").plan
    assert plan.step == Step(kind=kind, nodes=nodes, tasks_per_node=tasks_per_node)
    tasks = [plan.task(0, number) for number in range(nodes)]
    assert [p for task in tasks for p in task] == list(plan.layout.placements)
    assert [{p.node for p in task} for task in tasks] == [{node} for node in range(nodes)]


@pytest.mark.parametrize(
    "option",
    [
        "model",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "moe_expert_parallel_size",
        "expert_parallel_size",
        "gpus_per_node",
    ],
)
def test_an_option_that_the_plan_decides_is_refused(option: str) -> None:
    found = only(f"engine_options: {{{option}: 1}}\n")
    assert found == ("plan.engine-option", f"job.yaml:6:{20 + len(option)}")


def test_a_value_of_the_wrong_kind_is_refused_at_its_line() -> None:
    wrong = "engine_options:\n  dtype: bfloat16\n  max_num_seqs: many\n  enforce_eager: 3\n"
    found = errors(wrong, engine="vllm")
    assert [(p.code, str(p.where)) for p in found] == [
        ("engine.options", "job.yaml:8:17"),
        ("engine.options", "job.yaml:9:18"),
    ]
    assert "max_num_seqs" not in str(errors("engine_options: {seed: x}\n", engine="vllm")[0])


def test_options_of_other_engines_are_their_own() -> None:
    found = resolved("engine_options: {model: x}\n", engine="echo")
    assert found.plan.engine_options == {"model": "x"}


def test_more_nodes_than_the_partition_has_are_refused_with_what_would_fit() -> None:
    (problem,) = problems("parallelism: {tp: 8, pp: 2}\nreplicas: 3\n")
    assert (problem.code, str(problem.where)) == ("plan.too-few-nodes", "job.yaml:7:11")
    assert problem.hint == "set replicas to at most 2"
    assert resolved("parallelism: {tp: 8, pp: 2}\nreplicas: 2\n").plan.layout.replicas == 2


def test_an_array_larger_than_the_site_takes_is_refused() -> None:
    site = SITE.replace("{type: slurm}", "{type: slurm, max_array_size: 3}") + GPU
    (problem,) = errors("parallelism: {tp: 8}\nreplicas: 4\n", site)
    assert (problem.code, str(problem.where)) == ("plan.array-too-large", "job.yaml:7:11")
    assert "at most 3" in str(problem.hint)
    assert resolved("parallelism: {tp: 8}\nreplicas: 3\n", site).plan.layout.replicas == 3


def test_a_node_can_be_left_out_only_where_there_are_more() -> None:
    assert resolved("parallelism: {tp: 8}\nreplicas: 3\n").plan.spare_nodes
    assert not resolved("parallelism: {tp: 8}\nreplicas: 4\n").plan.spare_nodes


def test_a_replica_larger_than_the_partition_needs_a_smaller_cut() -> None:
    assert only("parallelism: {tp: 8, pp: 5}\n") == ("plan.too-few-nodes", "job.yaml:6:14")


def test_the_most_replicas_that_are_named_do_fit() -> None:
    (problem,) = errors("parallelism: {tp: 3}\nreplicas: 40\n")
    most = int(str(problem.hint).rsplit(" ", 1)[1])
    assert resolved(f"parallelism: {{tp: 3}}\nreplicas: {most}\n").plan.layout.replicas == most
    assert only(f"parallelism: {{tp: 3}}\nreplicas: {most + 1}\n")[0] == "plan.too-few-nodes"


def test_this_machine_is_one_node_whatever_its_site_file_leaves_out() -> None:
    # Nobody would start a second allocation of the local scheduler.
    site = "name: me\nscheduler: {type: local}\nlaunch: {with: none}\npartitions: {m: {slots: 2}}\n"
    assert resolved("replicas: 2\n", site, engine="echo").plan.layout.allocation.count == 1
    found = only("replicas: 3\n", site, engine="echo")
    assert found == ("plan.too-few-nodes", "job.yaml:6:11")


def test_gpus_that_are_paid_for_and_idle_are_worth_a_warning() -> None:
    (warning,) = resolved("parallelism: {tp: 3}\nreplicas: 3\n").warnings
    assert (warning.code, warning.severity) == ("plan.idle-gpus", "warning")
    assert str(warning.where) == "job.yaml:6:14"
    assert warning.message.startswith("3 of the 12 GPUs")


def test_a_site_of_whole_nodes_counts_all_their_gpus_as_held() -> None:
    whole = SITE + GPU.replace(', request: "--gres=gpu:{n}"', "")
    (warning,) = resolved("parallelism: {tp: 2}\n", whole).warnings
    assert warning.message.startswith("6 of the 8 GPUs")
    assert resolved("parallelism: {tp: 2}\n").warnings == ()


def test_without_a_limit_a_time_must_be_given() -> None:
    unlimited = SITE + GPU.replace("    time_limit: 1d\n", "")
    assert only(site=unlimited) == ("plan.time-missing", "job.yaml:1:1")
    assert only("resources: {account: a}\n", unlimited) == ("plan.time-missing", "job.yaml:6:12")


def test_a_time_over_the_limit_is_refused() -> None:
    found = only("resources: {time: 25h}\n")
    assert found == ("plan.time-over-limit", "job.yaml:6:19")


@pytest.mark.parametrize("time", ["0s", "1m", "5m"])
def test_a_time_that_ends_before_its_warning_is_refused(time: str) -> None:
    found = only(f"resources: {{time: {time}}}\n")
    assert found == ("plan.time-too-short", "job.yaml:6:19")


def test_a_short_time_with_a_late_warning_is_fine() -> None:
    job = "resources: {time: 5m}\nlimits: {warn_before: 1m}\n"
    assert dict(resolved(job).plan.directives)["--time"] == "0-00:05:00"


def test_a_slurm_plan_always_has_directives() -> None:
    unlimited = SITE + GPU.replace("    time_limit: 1d\n", "")
    job = "resources: {time: 2s}\nlimits: {warn_before: 1s}\n"
    assert dict(resolved(job, unlimited).plan.directives)["--partition"] == "gpu"


@pytest.mark.parametrize(
    ("site", "job", "engine", "where"),
    [
        (  # several ranks and nothing that starts them
            "scheduler: {type: slurm}\nlaunch: {with: none}\n" + GPU,
            "parallelism: {tp: 2}\n",
            "tensorrt-llm",
            "job.yaml:6:14",
        ),
        (  # an image and nothing that starts it
            "scheduler: {type: slurm}\nlaunch: {with: srun}\n" + GPU,
            "runtime: {image: /i.sqsh}\n",
            "tensorrt-llm",
            "job.yaml:6:10",
        ),
        (  # pyxis is a plugin of srun
            "scheduler: {type: slurm}\nlaunch: {with: mpirun, mpi: openmpi5}\n"
            "container: {runtime: pyxis}\n" + GPU,
            "runtime: {image: /i.sqsh}\n",
            "tensorrt-llm",
            "job.yaml:6:10",
        ),
        (
            "scheduler: {type: slurm}\nlaunch: {with: none}\ncontainer: {runtime: pyxis}\n" + GPU,
            "runtime: {image: /i.sqsh}\n",
            "vllm",
            "job.yaml:6:10",
        ),
    ],
)
def test_what_a_site_cannot_start_is_refused(site: str, job: str, engine: str, where: str) -> None:
    assert only(job, f"name: s\n{site}", engine=engine) == ("site.launch-impossible", where)


def test_an_image_of_the_site_that_cannot_be_started_points_into_the_job() -> None:
    site = (
        "name: s\nscheduler: {type: slurm}\nlaunch: {with: mpirun, mpi: hydra}\n"
        "container: {runtime: pyxis}\nengines: {vllm: {image: /i.sqsh}}\n" + GPU
    )
    assert only(site=site, engine="vllm") == ("site.launch-impossible", "job.yaml:1:1")
    assert resolved("runtime: {venv: /v}\n", site, engine="vllm").plan.runtime.venv == "/v"


def test_a_model_without_a_chat_template_is_refused_unless_bare_prompts_are_wanted() -> None:
    assert only(chat_template=False) == ("model.no-chat-template", "job.yaml:2:8")
    bare = ("input.chat=false",)
    assert resolved(settings=bare, chat_template=False).plan.model == "m"
    assert resolved(chat_template=None).plan.model == "m"


def test_a_tp_group_over_the_fabric_is_refused_unless_it_is_allowed() -> None:
    job = "parallelism: {tp: 16}\n"
    assert only(job) == ("plan.tp-over-fabric", "job.yaml:6:14")
    found = resolved(job + "allow: [tp-over-fabric]\n")
    assert [(w.code, w.severity) for w in found.warnings] == [("plan.tp-over-fabric", "warning")]
    assert (found.plan.step.nodes, found.plan.step.tasks_per_node) == (2, 8)


def test_fewer_gpus_a_node_bound_a_tp_group() -> None:
    job = "parallelism: {tp: 8}\nresources: {gpus_per_node: 4}\n"
    assert only(job)[0] == "plan.tp-over-fabric"


def test_a_cut_the_model_forbids_is_refused_at_the_cut() -> None:
    found = problems("parallelism: {tp: 3}\n", shape=BUILTIN["llama-3.1-8b"])
    assert "plan.tp-heads" in {p.code for p in found}
    assert {str(p.where) for p in found} == {"job.yaml:6:14"}


def test_everything_that_is_wrong_is_told_at_once() -> None:
    job = "parallelism: {pp: 2, ep: 2}\nresources: {gpus_per_node: 9}\n"
    codes = [p.code for p in problems(job, engine="transformers", chat_template=False)]
    assert codes == [
        "plan.gpus-per-node",
        "plan.engine-capability",
        "plan.engine-capability",
        "plan.ep-tp",
        "model.no-chat-template",
    ]


def test_nodes_runtime_and_time_are_told_at_once() -> None:
    site = SITE.replace("pyxis", "none") + GPU
    job = "replicas: 99\nresources: {time: 2d}\nruntime: {image: /i}\n"
    assert [p.code for p in errors(job, site)] == [
        "plan.too-few-nodes",
        "site.launch-impossible",
        "plan.time-over-limit",
    ]


# Where values come from


def test_each_value_tells_its_line_or_that_it_is_a_default() -> None:
    found = sources(resolved("parallelism:\n  tp: 4\nreplicas: 2\nlimits: {attempts: 3}\n"))
    assert found["engine"] == ("tensorrt-llm", "job.yaml:3")
    assert found["model"] == ("m", "job.yaml:2")
    assert found["parallelism.tp"] == ("4", "job.yaml:7")
    assert found["parallelism.pp"] == ("1", "default")
    assert found["replicas"] == ("2", "job.yaml:8")
    assert found["limits.attempts"] == ("3", "job.yaml:9")
    assert found["limits.warn_before"] == ("300", "default")
    assert found["resources.partition"] == ("gpu", "the only one of site here")
    assert found["gpus_per_node"] == ("8", "site here")
    assert found["resources.time"] == ("1d", "the limit of gpu")
    assert found["runtime.python"] == ("python3", "default")
    assert "runtime.image" not in found


def test_settings_and_defaults_tell_their_origin() -> None:
    found = sources(
        resolved(
            site=SITE + BOTH,
            settings=("parallelism.tp=2", "resources.gpus_per_node=4", "resources.time=2h"),
            defaults="\nresources:\n  partition: gpu\n",
        )
    )
    assert found["parallelism.tp"][0] == "2"
    assert found["parallelism.tp"][1].startswith("--set parallelism.tp")
    assert found["gpus_per_node"][1].startswith("--set resources.gpus_per_node")
    assert found["resources.time"][0] == "2h"
    assert found["resources.partition"] == ("gpu", "defaults.yaml:3")


def test_a_value_set_to_its_default_is_still_the_users() -> None:
    assert sources(resolved("replicas: 1\n"))["replicas"] == ("1", "job.yaml:6")


def test_slots_are_named_so_where_there_are_no_gpus() -> None:
    found = sources(resolved(site=SITE + CPU, engine="echo"))
    assert found["slots"] == ("4", "site here")
    assert "gpus_per_node" not in found


# The runtime of the job over the site's


def test_each_key_of_the_jobs_runtime_wins_over_the_sites() -> None:
    site = "image: /site.sqsh, python: /site/python, modules: [cuda]"
    found = runtime("python: /job/python", site)
    assert (found.image, found.python, found.modules) == ("/site.sqsh", "/job/python", ("cuda",))
    found = runtime("image: /job.sqsh, modules: [gcc, mpi], mounts: [/data]", site)
    assert (found.image, found.python) == ("/job.sqsh", "python3")  # the site's lies in its image
    assert (found.modules, found.mounts) == (("gcc", "mpi"), ("/data",))
    assert found.container == "pyxis"


def test_a_venv_of_the_job_puts_an_image_of_the_site_aside_and_the_other_way_round() -> None:
    found = runtime("venv: /v", "image: /site.sqsh")
    assert (found.image, found.venv, found.container) == (None, "/v", "none")
    found = runtime("image: /job.sqsh", "venv: /site/venv")
    assert (found.image, found.venv, found.container) == ("/job.sqsh", None, "pyxis")


def test_the_origin_of_each_part_of_the_runtime_is_told() -> None:
    engines = "engines: {tensorrt-llm: {image: /site.sqsh, python: p}}\n"
    found = sources(resolved("runtime: {python: /job/python}\n", SITE + GPU + engines))
    assert found["runtime.image"] == ("/site.sqsh", "site here")
    assert found["runtime.python"] == ("/job/python", "job.yaml:6")


LOCAL = (
    "name: me\nscheduler: {type: local}\nlaunch: {with: none}\n"
    "container: {runtime: apptainer}\npartitions: {m: {slots: 2}}\n"
)


def test_jobs_of_this_machine_run_under_the_python_that_plans() -> None:
    found = resolved(site=LOCAL, engine="echo", own_python="/own/python")
    assert found.plan.runtime.python == "/own/python"
    assert found.plan.directives == ()


@pytest.mark.parametrize(
    ("given", "python"),
    [("{venv: /v}", "python3"), ("{image: /i.sif}", "python3"), ("{python: /p}", "/p")],
)
def test_the_python_that_plans_is_not_assumed_in_a_venv_or_an_image(
    given: str, python: str
) -> None:
    found = resolved(f"runtime: {given}\n", LOCAL, engine="echo", own_python="/own/python")
    assert found.plan.runtime.python == python


def test_a_job_of_a_cluster_takes_whatever_python_the_node_has() -> None:
    found = resolved(engine="echo", own_python="/own/python")
    assert found.plan.runtime.python == "python3"


def test_the_environment_of_the_job_comes_after_the_sites() -> None:
    site = SITE + "env: {A: site, B: site}\n" + GPU
    plan = resolved("env: {B: job, C: job}\n", site).plan
    assert plan.env == {"A": "site", "B": "job", "C": "job"}


def test_a_plan_survives_json() -> None:
    job = "parallelism: {tp: 8, pp: 2}\nreplicas: 2\nruntime: {image: /i, mounts: [/m]}\n"
    plan = resolved(job).plan
    assert type(plan).from_json(plan.to_json()) == plan
