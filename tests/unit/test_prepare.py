"""From a job file to everything that is known before anything is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import HpcLlmError, SpecError
from launcher.plan import grid
from launcher.plan.compare import differences
from launcher.plan.cost import Workload
from launcher.plan.types import Plan, RunIdentity
from launcher.prepare import Prepared, prepare, run_directory_files

ROWS = 20


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job file of the echo engine over 20 rows."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HPC_LLM_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HPC_LLM_SITE", "local")
    folder = tmp_path / "jobs"
    folder.mkdir()
    rows = [json.dumps({"text": f"row {n}"}) for n in range(ROWS)]
    (folder / "in.jsonl").write_text("\n".join(rows) + "\n")
    return write(folder / "job.yaml")


def write(path: Path, **changes: Any) -> Path:
    spec: dict[str, Any] = {
        "schema": 1,
        "name": "t",
        "engine": "echo",
        "model": "echo",
        "input": {"path": "in.jsonl", "prompt": "{{ text }}", "chat": False},
        "output": {"path": "runs/t"},
    }
    path.write_text(yaml.safe_dump(spec | changes))
    return path


def codes(job: Path, *settings: str, **options: Any) -> list[str]:
    with pytest.raises(HpcLlmError) as caught:
        prepare(job, settings=settings, **options)
    return [problem.code for problem in caught.value.problems]


def rows_of(found: Prepared) -> int:
    """Rows that begin before the end of the grid."""
    data = Path(found.identity.inputs[0].path).read_bytes()[: found.identity.grid.total_bytes]
    return data.count(b"\n")


def test_nothing_is_written(job: Path) -> None:
    before = sorted(job.parent.parent.rglob("*"))
    found = prepare(job)
    run_directory_files(found, plan_number="0001")
    assert sorted(job.parent.parent.rglob("*")) == before


def test_paths_start_at_the_job_file_wherever_one_stands(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    found = prepare(job)
    assert found.run.path == job.parent / "runs" / "t"
    assert [entry.path for entry in found.identity.inputs] == [str(job.parent / "in.jsonl")]
    monkeypatch.chdir(job.parent.parent)
    assert prepare(Path("jobs/job.yaml")).identity == found.identity


def test_the_same_job_is_the_same_run(job: Path) -> None:
    assert prepare(job).identity == prepare(job).identity
    assert run_directory_files(prepare(job), plan_number="0001") == run_directory_files(
        prepare(job), plan_number="0001"
    )


def test_the_files_are_what_a_job_reads(job: Path) -> None:
    found = prepare(job)
    files = run_directory_files(found, plan_number="0007")
    assert RunIdentity.from_json(json.loads(files["run.json"])) == found.identity
    assert Plan.from_json(json.loads(files["plans/0007.json"])) == found.resolution.plan
    assert files["job.yaml"] == job.read_bytes()
    assert {"script.sh", "site.yaml"} <= files.keys()
    (lib,) = [name for name in files if name.startswith("lib/")]
    assert lib.encode() in files["script.sh"]


@pytest.mark.parametrize("limit", [1, 3, ROWS - 1])
def test_a_limit_takes_the_first_rows_into_a_directory_of_its_own(job: Path, limit: int) -> None:
    found = prepare(job, limit=limit)
    assert rows_of(found) == limit
    assert found.run.path == job.parent / "runs" / f"t.first-{limit}"


@pytest.mark.parametrize("limit", [ROWS, ROWS + 1, 10**6])
def test_a_limit_beyond_the_input_takes_all_of_it(job: Path, limit: int) -> None:
    assert prepare(job, limit=limit).identity.grid == prepare(job).identity.grid


def test_a_limit_counts_rows_over_files_and_not_blank_lines(job: Path) -> None:
    (job.parent / "more").mkdir()
    (job.parent / "more" / "a.jsonl").write_text('\n{"text": 1}\n\n{"text": 2}')
    (job.parent / "more" / "b.jsonl").write_text('{"text": 3}\n\n{"text": 4}\n')
    write(job, input={"path": "more", "prompt": "{{ text }}", "chat": False})
    sizes = [prepare(job, limit=n).identity.grid.total_bytes for n in (1, 2, 3, 4)]
    first = (job.parent / "more" / "a.jsonl").stat().st_size
    assert sizes[0] < sizes[1] == first < sizes[2]
    assert sizes[3] == prepare(job).identity.grid.total_bytes
    assert grid.count(prepare(job, limit=1).identity.grid) >= 1


def test_a_promise_about_csv_is_part_of_what_the_run_is(job: Path) -> None:
    (job.parent / "in.csv").write_text("text\n1\n")
    given = {"path": "in.csv", "prompt": "{{ text }}", "chat": False}
    write(job, input=given)
    before = prepare(job).identity
    write(job, input={**given, "newlines": False})
    after = prepare(job).identity
    assert [entry.newlines for entry in (*before.inputs, *after.inputs)] == [True, False]
    assert differences(before, after) == [f"input {job.parent / 'in.csv'}: newlines True -> False"]


def test_run_json_has_one_line_for_each_input_file(job: Path) -> None:
    (job.parent / "more").mkdir()
    for number in range(40):
        (job.parent / "more" / f"{number:02}.txt").write_text("hello\n")
    write(job, input={"path": "more", "prompt": "{{ text }}", "chat": False})
    found = prepare(job)
    text = run_directory_files(found, plan_number="0001")["run.json"].decode()
    assert sum(".txt" in line for line in text.splitlines()) == 40
    assert RunIdentity.from_json(json.loads(text)) == found.identity


def test_a_bad_header_points_to_the_input_in_the_job_file(job: Path) -> None:
    (job.parent / "in.csv").write_text("a,a\n1,2\n")
    write(job, input={"path": "in.csv", "prompt": "{{ a }}", "chat": False})
    with pytest.raises(SpecError) as caught:
        prepare(job)
    (problem,) = caught.value.problems
    assert problem.code == "input.column-names"
    assert problem.where is not None
    assert problem.where.field == "$.input.path"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/../x", "x"),
        ("./x/./y", "x/y"),
        ("../../../../../../../../../x", "/x"),
        ("~nosuchuser/x", "~nosuchuser/x"),
        ("a b/ünï'\"$x`", "a b/ünï'\"$x`"),
    ],
)
def test_an_output_path_is_where_it_says(job: Path, path: str, expected: str) -> None:
    write(job, output={"path": path})
    assert prepare(job).run.path == job.parent / expected


def test_a_run_where_compute_nodes_cannot_write_is_refused(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "project")
    monkeypatch.setenv("PROJECT", str(tmp_path / "link"))
    site = tmp_path / "site.yaml"
    site.write_text(
        "name: s\nscheduler: {type: local}\nlaunch: {with: none}\n"
        "scratch: {read_only: [$PROJECT, /nowhere, $UNSET_VARIABLE]}\npartitions: {m: {}}\n"
    )
    for place in ("link", "project"):
        with pytest.raises(HpcLlmError) as caught:
            prepare(job, site=str(site), settings=[f"output.path={tmp_path}/{place}/run"])
        (problem,) = caught.value.problems
        assert (problem.code, problem.where is not None) == ("plan.read-only", True)
        assert "$PROJECT" in problem.message
    elsewhere = prepare(job, site=str(site), settings=[f"output.path={tmp_path}/linked/run"])
    assert elsewhere.run.path == tmp_path / "linked" / "run"


def test_an_output_path_in_the_home_is_found(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    write(job, output={"path": "~/runs/x"})
    assert prepare(job).run.path == Path("/home/me/runs/x")


@pytest.mark.parametrize("path", ["a:b", "a,b", "a\\b"])
def test_a_run_directory_that_scripts_cannot_name_is_refused(job: Path, path: str) -> None:
    write(job, output={"path": path})
    assert codes(job) == ["plan.run-directory"]


def test_a_run_directory_that_is_not_utf8_is_refused(job: Path) -> None:
    folder = job.parent.parent / os.fsdecode(b"caf\xe9")
    job.parent.rename(folder)
    assert codes(folder / "job.yaml") == ["plan.run-directory"]


def test_an_input_file_whose_name_is_not_utf8_is_read(job: Path) -> None:
    (job.parent / "in").mkdir()
    (job.parent / "in.jsonl").rename(job.parent / "in" / os.fsdecode(b"caf\xe9.jsonl"))
    write(job, input={"path": "in/*.jsonl", "prompt": "{{ text }}", "chat": False})
    found = prepare(job)
    files = run_directory_files(found, plan_number="0001")
    assert RunIdentity.from_json(json.loads(files["run.json"])) == found.identity


def test_a_limit_on_the_root_directory_is_no_bug(job: Path) -> None:
    write(job, output={"path": "/"})
    assert prepare(job, limit=3).run.path == Path("/")


def defaults(job: Path, text: str) -> None:
    folder = job.parent.parent / "config" / "hpc-llm"
    folder.mkdir(parents=True)
    (folder / "defaults.yaml").write_text(text)


def test_defaults_fill_what_the_job_leaves_open(job: Path) -> None:
    defaults(job, "account: proj42\npartition: batch\n")
    found = prepare(job, site="dgx-h100", settings=["resources.time=1h"])
    assert ("--account", "proj42") in found.resolution.plan.directives
    assert ("--partition", "batch") in found.resolution.plan.directives
    found = prepare(job, site="dgx-h100", settings=["resources.time=1h", "resources.account=other"])
    assert ("--account", "other") in found.resolution.plan.directives


def test_a_default_site_is_used_unless_one_is_named(job: Path) -> None:
    defaults(job, "site: dgx-h100\n")
    assert prepare(job, settings=["resources.time=1h"]).site.spec.name == "dgx-h100"
    assert prepare(job, site="local").site.spec.name == "local"


@pytest.mark.parametrize("text", ["accnt: x\n", "account: [\n", "- x\n", "account: 7\n"])
def test_wrong_defaults_are_pointed_at(job: Path, text: str) -> None:
    defaults(job, text)
    with pytest.raises(HpcLlmError) as caught:
        prepare(job)
    where = caught.value.problems[0].where
    assert where is not None
    assert where.path.endswith("defaults.yaml")


@pytest.mark.parametrize("content", ["", "\n \n\r\n", " "])
def test_an_input_without_rows_is_refused(job: Path, content: str) -> None:
    (job.parent / "in.jsonl").write_text(content)
    assert codes(job) == ["input.empty"]


def test_a_row_without_a_needed_field_is_said_before_anything_runs(job: Path) -> None:
    write(job, input={"path": "in.jsonl", "prompt": "{{ txt }}", "chat": False})
    assert codes(job) == ["input.missing-field"]


def test_a_tilde_is_the_home_wherever_the_job_names_a_path(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(job.parent))
    write(
        job,
        input={"path": "~/in.jsonl", "prompt": "{{ text }}"},
        output={"path": "~/out"},
        runtime={"venv": "~/venv", "mounts": ["~/data"]},
    )
    found = prepare(job)
    assert found.identity.inputs[0].path == str(job.parent / "in.jsonl")
    assert found.run.path == job.parent / "out"
    runtime = found.resolution.plan.runtime
    assert (runtime.venv, runtime.mounts) == (
        str(job.parent / "venv"),
        (str(job.parent / "data"),),
    )


# What a sample tells of the rows


def rows_of_job(job: Path, *settings: str, **options: Any) -> Workload:
    return prepare(job, settings=settings, **options).resolution.workload


def test_prompts_are_measured_as_they_will_be_sent(job: Path) -> None:
    short = rows_of_job(job)
    assert short.prompt_tokens == (10 * 5 + 10 * 6) / ROWS / 4  # "row 7", "row 17"
    long = rows_of_job(job, "input.prompt=" + "x" * 394 + "{{ text }}")
    assert long.prompt_tokens == short.prompt_tokens + 394 / 4
    assert (short.rows, short.most_new_tokens) == (ROWS, 512)


def test_rows_are_estimated_from_the_bytes_of_the_first_ones(job: Path) -> None:
    lines = [json.dumps({"text": "x" * (n % 10)}) for n in range(5000)]
    (job.parent / "in.jsonl").write_text("\n".join(lines) + "\n")
    rows = rows_of_job(job).rows
    assert rows is not None
    assert abs(rows - 5000) < 100
    assert rows_of_job(job, limit=7).rows == 7


def test_rows_that_override_the_length_of_answers_are_heard(job: Path) -> None:
    body = {"messages": [{"role": "user", "content": "a" * 40}], "max_tokens": 9}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (job.parent / "in.jsonl").write_text(json.dumps(line) + "\n")
    write(job, input={"path": "in.jsonl"})
    found = rows_of_job(job)
    assert found.prompt_tokens == len("<user> " + "a" * 40) / 4
    assert (found.most_new_tokens, found.rows) == (9, 1)


def test_rows_that_are_errors_tell_nothing_of_prompts(job: Path) -> None:
    good = json.dumps({"text": "x" * 400})
    (job.parent / "in.jsonl").write_text(f"{{broken\n{good}\n[]\n")
    found = rows_of_job(job)
    assert (found.prompt_tokens, found.rows) == (100, 3)
