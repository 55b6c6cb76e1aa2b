"""The command that starts one replica's ranks, as words: srun, mpirun or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from launcher.plan.directives import cpus_per_task
from launcher.plan.types import Plan
from launcher.render.quoting import Raw, shell_path, shell_value

__all__ = ["CACHES", "step_words"]

# Where engines and what they compile with keep what they made, each with its own default below
# the home directory or /tmp. XDG_CACHE_HOME is left alone: models of the Hugging Face hub are
# found below it. (vLLM, envs.py; Triton, knobs.py; PyTorch, _inductor/runtime/cache_dir_utils.py
# and utils/cpp_extension.py; FlashInfer, jit/env.py; TensorRT-LLM, deep_gemm/compiler.cuh; CUDA
# C++ Programming Guide, "CUDA Environment Variables".)
CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
    "TRITON_CACHE_DIR": "triton",
    "TRTLLM_DG_CACHE_DIR": "deep-gemm",
    "VLLM_CACHE_ROOT": "vllm",
}

# From the end of the first task to that of the last.
_PARTING_S = 60

Word = str | int | PurePosixPath


def step_words(plan: Plan, run_dir: PurePosixPath) -> tuple[Word, ...]:
    """The words before the arguments of ``launcher.runner.rank``, unquoted."""
    return (*_LAUNCHERS[plan.launcher](plan, run_dir), *_apptainer(plan, run_dir), *_python(plan))


def _python(plan: Plan) -> Iterator[Word]:
    runtime = plan.runtime
    if runtime.image:
        # Of a variable that the image sets too, pyxis (args.c, --container-env) and Apptainer
        # (user guide, "Environment from the host") keep the image's value. Theirs are two ways
        # out, one of them new in 2024, the other of no use for values with commas: `env` has
        # the last word in both, in each version.
        yield "env"
        for name in exported(plan, "PYTHONNOUSERSITE"):
            yield Raw(f'{name}="${name}"')
    # With a venv, PATH finds its interpreter, unless the user named one by path.
    yield runtime.python
    yield from ("-m", "launcher.runner.rank")


def exported(plan: Plan, *more: str) -> list[str]:
    """The variables that the script sets for ranks, in order."""
    caches = CACHES if plan.scratch is not None else ()
    return sorted({*plan.env, *caches, "PYTHONPATH", "PYTHONUNBUFFERED", *more})


def _srun(plan: Plan, run_dir: PurePosixPath) -> Iterator[Word]:
    step = plan.step
    yield "srun"
    # Without --overlap the steps of packed replicas run one after another (Slurm >= 20.11).
    yield from ("--overlap", "--relative=0")
    yield from (f"--nodes={step.nodes}", f"--ntasks={step.tasks}")
    yield f"--ntasks-per-node={step.tasks_per_node}"
    if (cpus := cpus_per_task(plan.layout, step)) is not None:
        yield f"--cpus-per-task={cpus}"
    # The second field's default is cyclic, which would scatter a TP group over sockets.
    yield "--distribution=block:block"
    yield "--kill-on-bad-exit=1"  # a dead rank leaves the others hanging in a collective
    if step.kind == "leader":
        yield f"--wait={_PARTING_S}"  # and one that does not end holds the nodes
    if plan.mpi is not None:
        yield f"--mpi={plan.mpi}"
    if plan.forced_binding:
        # A rank reads the list of all GPUs of its job. allow-task-sharing alone would let it
        # open them and yet list but its own (srun(1), "--gres-flags").
        yield "--gpu-bind=none"
    if plan.share_gpus:
        yield "--gres-flags=allow-task-sharing"
    if plan.network is not None:
        yield from plan.network.srun
    yield from ("--label", "--unbuffered")
    if plan.runtime.container == "pyxis" and plan.runtime.image:
        yield f"--container-image={plan.runtime.image}"
        places = (str(run_dir), *plan.runtime.mounts)
        mounts = ",".join(m if ":" in m else f"{m}:{m}" for m in places)
        option = f"--container-mounts={mounts}"
        if plan.scratch is None:
            yield option
        else:
            place = shell_path(plan.scratch)
            yield Raw(f"{shell_value(option)},{place}:{place}")
        yield from ("--no-container-mount-home", f"--container-workdir={run_dir}")


def _mpirun(plan: Plan, run_dir: PurePosixPath) -> Iterator[Word]:  # noqa: ARG001 - as _srun
    step = plan.step
    names = exported(plan, "PATH")
    if plan.mpi in ("hydra", "intel"):
        # Hydra starts its proxies by srun. Where Slurm's default is PMIx, MPICH would find the
        # variables of two kinds of PMI and give up; and packed replicas would queue for steps.
        yield from ("env", "SLURM_MPI_TYPE=none", "SLURM_OVERLAP=1")
        yield from ("mpiexec", "-n", step.tasks, "-ppn", step.tasks_per_node)
        yield from ("-genvlist", ",".join(names))
        return
    # Nodes are filled in Slurm's order, block by block as by srun: no rankfile is needed.
    yield from ("mpirun", "-np", step.tasks, "--map-by", f"ppr:{step.tasks_per_node}:node")
    # The engine pins its own threads; Open MPI would put each rank on one core.
    yield from ("--bind-to", "none")
    for name in names:
        yield from ("-x", name)


def _none(plan: Plan, run_dir: PurePosixPath) -> Iterator[Word]:  # noqa: ARG001 - as _srun
    yield from ()


_LAUNCHERS = {"srun": _srun, "mpirun": _mpirun, "none": _none}


# Where the PMIx server of this node waits for its ranks: below Slurm's spool directory, or
# mpirun's own. Only the rank is told. Under pyxis a hook of enroot mounts it (enroot,
# conf/hooks/extra/50-slurm-pmi.sh).
_WITH_PMIX = 'exec "$0" exec ${PMIX_SERVER_TMPDIR:+--bind "$PMIX_SERVER_TMPDIR"} "$@"'


def _apptainer(plan: Plan, run_dir: PurePosixPath) -> Iterator[Word]:
    if plan.runtime.container != "apptainer" or not plan.runtime.image:
        return
    if plan.mpi in ("pmix", "openmpi4", "openmpi5"):
        yield from ("bash", "-c", _WITH_PMIX, plan.runtime.command)
    else:
        yield from (plan.runtime.command, "exec")
    if plan.layout.allocation.gpus_per_node:
        yield "--nv"
    for path in (str(run_dir), *plan.runtime.mounts):
        yield from ("--bind", path)
    if plan.scratch:
        yield from ("--bind", shell_path(plan.scratch))
    yield from ("--pwd", run_dir, plan.runtime.image)
