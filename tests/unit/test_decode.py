from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

import launcher.spec.job
import launcher.spec.site
from launcher.errors import Problem, SpecError
from launcher.spec.decode import decode
from launcher.spec.job import Input, JobSpec, Parallelism, SamplingSpec
from launcher.spec.leaves import Bytes, Seconds
from launcher.spec.site import EngineRuntime, SiteSpec
from launcher.spec.source import Source, parse

JOB = "name: a\nmodel: /m\ninput: {path: a.jsonl}\noutput: {path: r}\n"
SITE = "name: a\nscheduler: {type: slurm}\nlaunch: {with: srun}\n"
STRUCTS = [
    item
    for module in (launcher.spec.job, launcher.spec.site)
    for item in vars(module).values()
    if isinstance(item, type) and issubclass(item, msgspec.Struct)
]


def faults(text: str, kind: Any = JobSpec) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        decode(parse("f.yaml", text), kind)
    return list(caught.value.problems)


def fault(text: str, kind: Any = JobSpec) -> Problem:
    (problem,) = faults(text, kind)
    return problem


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_spec_is_frozen_strict_and_built_by_keyword(struct: Any) -> None:
    assert struct.__struct_config__.frozen
    assert struct.__struct_config__.forbid_unknown_fields
    with pytest.raises(TypeError, match="positional"):
        struct(None)


def test_all_structs_of_the_specs_are_looked_at() -> None:
    assert {JobSpec, SiteSpec, Input, EngineRuntime} < set(STRUCTS)


def test_a_job_is_read_with_its_units_and_defaults() -> None:
    job = decode(parse("f", JOB + "resources: {time: 12:30:00}\nparallelism: {tp: 8}\n"), JobSpec)
    assert job.resources.time == Seconds(45000)
    assert job.parallelism == Parallelism(tp=8)
    assert job.sampling == SamplingSpec()


def test_a_site_is_read_with_renamed_keys_and_sizes() -> None:
    site = decode(parse("f", SITE + "partitions: {p: {memory: 1TB}}\n"), SiteSpec)
    assert site.launch.with_ == "srun"
    assert site.partitions["p"].memory == Bytes(10**12)


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    job = decode(parse("f", JOB + "sampling: {temperature: 1}\n"), JobSpec)
    assert job.sampling.temperature == 1.0


def test_a_mapping_or_a_word_is_taken_where_both_are_allowed() -> None:
    assert decode(parse("f", JOB + "parallelism: auto\n"), JobSpec).parallelism == "auto"
    assert fault(JOB + "parallelism: {tp: x}\n").where is not None


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "nam: a\ninput: {path: [a, 1]}\nparallelism: {tp: four, qq: 2}\n"
        "env: {A-B: x, C: 1}\nresources: gpu\n"
    )
    found = [(p.code, p.where.line, p.where.column) for p in faults(text) if p.where]
    assert found == [
        ("spec.unknown-key", 1, 1),
        *(("spec.missing-key", 1, 1),) * 3,
        ("spec.invalid", 2, 19),
        ("spec.invalid", 3, 19),
        ("spec.unknown-key", 3, 25),
        ("spec.invalid", 4, 7),
        ("spec.invalid", 4, 18),
        ("spec.invalid", 5, 12),
    ]


def test_a_wrong_value_is_told_in_plain_words() -> None:
    problem = fault(JOB + "parallelism: {tp: four}\n")
    wanted = "a whole number of at least 1"
    assert problem.message == f"`parallelism.tp` must be {wanted}, got 'four'"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("parallelism: {tpp: 8}", "did you mean `tp`?"),
        ("parallelism: {x: 8}", "use one of tp, pp, ep"),
        ("engine: vlm", "did you mean `vllm`?"),
        ("resources: {account: 42}", "put quotes around the value"),
        ("resources: {account: true}", "put quotes around the value"),
        ("parallelism: {tp: '8'}", "write it as a plain number: no quotes, no leading zeros"),
        ("runtime: {mounts: /gpfs}", "write it as a list: [first, second]"),
        ("parallelism: 8", "write its keys in the lines below it, indented: tp, pp, ep"),
        ("limits:", "give it a value, or delete the key"),
    ],
)
def test_a_hint_says_what_to_do(line: str, hint: str) -> None:
    assert fault(f"{JOB}{line}\n").hint == hint


def test_a_missing_key_is_told_with_what_goes_there() -> None:
    problem = fault(SITE + "partitions: {p: {gpus: {model: h100}}}\n", SiteSpec)
    assert problem.code == "spec.missing-key"
    assert problem.where is not None
    assert (problem.where.line, problem.where.column) == (4, 24)
    assert problem.hint == "add `per_node:` with a whole number of at least 1"


def test_a_wrong_word_as_a_key_is_an_unknown_key() -> None:
    problem = fault(SITE + "partitions: {}\nengines: {tensorrtllm: {}}\n", SiteSpec)
    assert (problem.code, problem.hint) == ("spec.unknown-key", "did you mean `tensorrt-llm`?")


@pytest.mark.parametrize(
    "text", ["x-" * 500, "\x1b[31m" * 3, "'" * 200], ids=["long", "esc", "quotes"]
)
def test_values_in_messages_are_short_and_harmless(text: str) -> None:
    data = {"name": "a", "model": "m", "input": {"path": "p"}, "output": {"path": "r"}}
    for wrong in ({"engine": text}, {text: 1}, {"env": {text: "1"}}):
        with pytest.raises(SpecError) as caught:
            decode(Source("f", data | wrong, {}), JobSpec)
        (problem,) = caught.value.problems
        assert len(problem.message) < 200
        assert problem.message.isprintable()


@pytest.mark.parametrize(
    "env",
    [
        "{A: 31337, B: 31337.5}",
        "31337",
        "[31337]",
        "hf_31337",
        "{KEY=31337}",
        "{A: [31337], B: {C: 31337}}",
    ],
)
def test_values_under_env_are_never_shown(env: str) -> None:
    problems = faults(f"{JOB}env: {env}\n")
    assert {p.code for p in problems} == {"spec.invalid"}
    assert "31337" not in "".join(map(str, problems))


@pytest.mark.parametrize(
    "line", [f"resources: {{time: {'9' * 400}h}}", "limits: {warn_before: 5}", "allow: [a, b]"]
)
def test_values_that_do_not_convert_are_problems_not_crashes(line: str) -> None:
    assert {p.code for p in faults(f"{JOB}{line}\n")} == {"spec.invalid"}


def test_a_constraint_that_only_msgspec_knows_is_still_a_problem() -> None:
    class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        both: Annotated[list[int], Meta(min_length=2)]

    assert fault("both: [1]\n", Pair).code == "spec.invalid"


def test_problems_of_defaults_come_after_those_of_the_file() -> None:
    class Two(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        a: int
        b: Literal["x"]

    marks = {"$.a": parse("defaults", "a: z").at("$.a"), "$.b": parse("f", "\nb: z").at("$.b")}
    with pytest.raises(SpecError) as caught:
        decode(Source("f", {"a": "z", "b": "z"}, marks), Two)
    assert [p.where.path for p in caught.value.problems if p.where] == ["f", "defaults"]


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
) | st.sampled_from(["auto", "all", "4h", "80GB", "srun", "slurm", "echo", 1, 10**400])
KEYS = st.sampled_from(
    sorted({f.encode_name for struct in STRUCTS for f in msgspec.structs.fields(struct)})
) | st.text(max_size=3)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(TREES, st.sampled_from(STRUCTS))
def test_any_data_decodes_or_gives_a_spec_error(data: Any, kind: type[Any]) -> None:
    try:
        assert isinstance(decode(Source("f", data, {}), kind), kind)
    except SpecError as exc:
        codes = {"spec.unknown-key", "spec.missing-key", "spec.invalid"}
        assert {p.code for p in exc.problems} <= codes
