from __future__ import annotations

import pytest

from launcher.errors import Problem, SpecError
from launcher.spec.decode import decode
from launcher.spec.job import JobSpec
from launcher.spec.rules import check_job, check_site, read_job, read_site
from launcher.spec.site import SiteSpec
from launcher.spec.source import overlay, parse, with_setting

JOB = "name: a\nmodel: /m\ninput: {path: a.jsonl}\noutput: {path: r}\n"
SITE = "name: a\nscheduler: {type: slurm}\nlaunch: {with: srun}\n"


def job_problems(text: str) -> list[Problem]:
    source = parse("job.yaml", text)
    return check_job(decode(source, JobSpec), source)


def site_problems(text: str) -> list[Problem]:
    source = parse("site.yaml", text)
    return check_site(decode(source, SiteSpec), source)


def prompt_problems(template: str) -> list[Problem]:
    source = with_setting(parse("job.yaml", JOB), "input.prompt=x")
    source.data["input"]["prompt"] = template
    return check_job(decode(source, JobSpec), source)


def test_a_sound_job_has_no_problems() -> None:
    assert job_problems(JOB) == []
    assert read_job(parse("f", JOB)).name == "a"


def test_a_sound_site_has_no_problems() -> None:
    text = SITE + "partitions: {p: {}}\n"
    assert site_problems(text) == []
    assert read_site(parse("f", text)).partitions["p"].slots == 1


def test_all_broken_rules_are_told_in_the_order_of_the_file() -> None:
    text = (
        'name: "a\\n"\nmodel: /m\ninput: {path: [], prompt: "{{", messages: []}\n'
        "output: {path: r, keep: [x, x, x]}\nenv: {TOKEN: a, SLURM_NODEID: b}\n"
        "runtime: {image: i, venv: v}\n"
    )
    found = [(p.code, p.where.line, p.where.column) for p in job_problems(text) if p.where]
    assert found == [
        ("spec.control-character", 1, 7),
        ("spec.invalid", 3, 15),
        ("spec.template", 3, 27),
        ("spec.conflict", 3, 33),
        ("spec.invalid", 3, 43),
        ("spec.conflict", 4, 29),
        ("spec.conflict", 4, 32),
        ("spec.secret", 5, 7),
        ("spec.reserved-env", 5, 17),
        ("spec.conflict", 6, 21),
    ]
    with pytest.raises(SpecError) as caught:
        read_job(parse("job.yaml", text))
    assert list(caught.value.problems) == job_problems(text)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "TOKEN",
        "AWS_SECRET",
        "DB_PASSWORD",
        "PASSWD",
        "openai_api_key",
        "AWS_ACCESS_KEY",
        "GOOGLE_CREDENTIALS",
    ],
)
def test_secrets_do_not_belong_in_a_file(name: str) -> None:
    (problem,) = job_problems(f"{JOB}env: {{{name}: hf_value}}\n")
    assert problem.code == "spec.secret"
    assert "hf_value" not in str(problem)
    text = f"{SITE}partitions: {{p: {{}}}}\nenv: {{{name}: x}}\n"
    assert [p.code for p in site_problems(text)] == ["spec.secret"]


@pytest.mark.parametrize("image", ["docker://me:hunter2@nvcr.io/x:1", "$oauthtoken:hunter2@r#x"])
def test_the_password_of_a_registry_does_not_belong_in_a_file(image: str) -> None:
    (problem,) = job_problems(f"{JOB}runtime: {{image: '{image}'}}\n")
    assert problem.code == "spec.secret"
    assert "hunter2" not in str(problem)
    text = (
        f"{SITE}container: {{runtime: pyxis}}\npartitions: {{p: {{}}}}\n"
        f"engines: {{vllm: {{image: '{image}'}}}}\n"
    )
    assert [p.code for p in site_problems(text)] == ["spec.secret"]


@pytest.mark.parametrize("image", ["nvcr.io#nvidia/x:1", "docker://me@r/x", "x:1@sha256:0123"])
def test_an_image_without_a_password_is_taken(image: str) -> None:
    assert job_problems(f"{JOB}runtime: {{image: '{image}'}}\n") == []


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "SECRETS_DIR", "KEY"])
def test_names_that_only_sound_like_secrets_are_allowed(name: str) -> None:
    assert job_problems(f"{JOB}env: {{{name}: x}}\n") == []


@pytest.mark.parametrize(
    "name",
    [
        "HPC_LLM_SITE",
        "HPC_LLM_PATIENCE_X",
        "SLURM_JOB_ID",
        "PMI_RANK",
        "PMIX_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "CUDA_VISIBLE_DEVICES",
    ],
)
def test_the_rank_variables_are_not_the_users_to_set(name: str) -> None:
    assert [p.code for p in job_problems(f"{JOB}env: {{{name}: '0'}}\n")] == ["spec.reserved-env"]


@pytest.mark.parametrize(
    "name", ["MY_SLURM_X", "CUDA_VISIBLE_DEVICES_X", "NCCL_DEBUG", "HPC_LLM_PATIENCE"]
)
def test_other_variables_are(name: str) -> None:
    assert job_problems(f"{JOB}env: {{{name}: '0'}}\n") == []


@pytest.mark.parametrize("escape", [r"\n", r"\r", r"\t", r"\0", r"\e", r"\x7f", r"\x9b", r"\u2028"])
@pytest.mark.parametrize(
    "line",
    [
        "resources: {qos: 'X'}",
        "resources: {partition: 'X'}",
        "runtime: {mounts: [a, 'X']}",
        "runtime: {python: 'X'}",
        "runtime: {modules: ['X']}",
    ],
)
def test_control_characters_do_not_reach_directives_and_paths(line: str, escape: str) -> None:
    text = JOB + line.replace("'X'", f'"a{escape}b"') + "\n"
    assert [p.code for p in job_problems(text)] == ["spec.control-character"]


def test_prompts_and_engine_options_are_data_and_may_hold_anything() -> None:
    text = JOB.replace("a.jsonl", r'a.jsonl, prompt: "a\n\e\0"')
    assert (
        job_problems(text + 'engine_options: {"a\\n": "b\\n"}\nsampling: {stop: ["\\n"]}\n') == []
    )


def test_an_env_value_may_hold_line_breaks_but_no_nul() -> None:
    problems = job_problems(JOB + 'env: {A: "a\\n\\tb", B: "\\0", "C\\n": x}\n')
    found = [(p.code, p.where.field) for p in problems if p.where]
    code = "spec.control-character"
    assert found == [(code, "$.env.B"), (code, '$.env["C\\n"]')]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ a", 1),
        ("x\n{% if a %}", 2),
        ("{{ }}", 1),
        ("a\nb\n{{ x | nope }}", 3),
        ("{% zz %}", 1),
        ("{{ " + "(" * 5000, 1),
        ("{{ " + "9" * 5000 + " }}", 1),
    ],
)
def test_a_template_that_jinja_refuses_is_told_with_its_line(template: str, line: int) -> None:
    (problem,) = prompt_problems(template)
    assert problem.code == "spec.template"
    assert problem.message.startswith(f"line {line} of the template `input.prompt`: ")


@pytest.mark.parametrize(
    "template", ["{{ a.b['c'] | trim | tojson }}", "{'a': 1}", "{{ 'x' * 10**12 }}"]
)
def test_a_template_is_only_parsed(template: str) -> None:
    assert prompt_problems(template) == []


def test_a_problem_names_the_file_its_value_came_from() -> None:
    source = overlay(parse("job.yaml", JOB), parse("defaults.yaml", "env: {HF_TOKEN: x}\n"))
    (problem,) = check_job(decode(source, JobSpec), source)
    assert problem.where is not None
    assert problem.where.path == "defaults.yaml"


@pytest.mark.parametrize("pattern", ["login[", "*", "(?P<a", "a{99999999999999999999}"])
def test_a_host_name_pattern_must_compile(pattern: str) -> None:
    text = f"{SITE}detect: {{hostname: '{pattern}'}}\npartitions: {{p: {{}}}}\n"
    assert [p.code for p in site_problems(text)] == ["spec.invalid"]


@pytest.mark.parametrize(
    ("launcher", "mpi", "fits"),
    [("srun", m, True) for m in ("pmix", "pmi2", "cray_shasta", "none")]
    + [("srun", m, False) for m in ("openmpi4", "openmpi5", "hydra", "intel")]
    + [("mpirun", m, True) for m in ("openmpi4", "openmpi5", "hydra", "intel")]
    + [("mpirun", m, False) for m in ("pmix", "pmi2", "cray_shasta", "none")]
    + [("none", "none", True), ("none", "pmix", False), ("none", "openmpi5", False)],
)
def test_the_mpi_flavour_must_fit_the_launcher(launcher: str, mpi: str, fits: bool) -> None:  # noqa: FBT001 - a column of the table above
    text = f"name: a\nscheduler: {{type: slurm}}\nlaunch: {{with: {launcher}, mpi: {mpi}}}\n"
    expected = [] if fits else [("spec.conflict", "$.launch.mpi")]
    problems = site_problems(text + "partitions: {p: {}}\n")
    assert [(p.code, p.where.field) for p in problems if p.where] == expected


def test_rails_of_two_partitions_are_two_sets() -> None:
    rails = "[{hca: e0, gpus: [0, 1]}]"
    node = f"{{gpus: {{model: h, per_node: 2}}, fabric: {{type: ethernet, rails: {rails}}}}}"
    assert site_problems(f"{SITE}partitions: {{a: {node}, b: {node}}}\n") == []
