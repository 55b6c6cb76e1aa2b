"""Every command: its help, its envelope, and what `results` gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from cli_driving import Cli, envelope, write_job

from launcher import cli as cli_module
from launcher.cli.answer import AnswerCommand

ROWS = [{"text": f"row {n}", "id": f"id-{n}"} for n in range(30)]
CODE_LINES = {"fail_rate": 0.4}


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command there is, by its words."""
    context = click.Context(cli_module.main)
    for name in cli_module.main.list_commands(context):
        found = cli_module.main.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from (((name, sub), command) for sub, command in found.commands.items())
        else:
            yield (name,), found


WORDS = [words for words, _ in commands()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def user(home: Path) -> Cli:
    """One user for all of this module, with a run that is done and has some errors."""
    cli = Cli(home)
    job = write_job(
        home / "work", rows=ROWS, engine_options=CODE_LINES, limits={"max_bad_fraction": 1.0}
    )
    assert cli("submit", job, "--wait").code == 0
    return cli


@pytest.fixture
def run(user: Cli) -> Path:
    return user.home / "work" / "run"


@pytest.fixture
def half(user: Cli, tmp_path: Path) -> Path:
    """A run directory with a missing part."""
    job = write_job(tmp_path / "half", rows=ROWS)
    assert user("submit", job, "--wait").code == 0
    run = tmp_path / "half" / "run"
    sorted((run / "parts").iterdir())[1].unlink()
    return run


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_command_answers_in_one_way_and_says_what_it_does(words: tuple[str, ...]) -> None:
    command = dict(commands())[words]
    assert isinstance(command, AnswerCommand)
    assert command.help
    assert all(isinstance(p, click.Argument) or p.help for p in command.params if p.name != "help")


@pytest.mark.parametrize("words", [(), *WORDS], ids=" ".join)
def test_help_is_there_before_anything_else_is_wrong(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli_module.main([*words, "--help"], prog_name="hpc-llm")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(" ".join(("Usage: hpc-llm", *words)))


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_usage_error_has_an_envelope_too(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli_module.main([*words, "--nosuch", "--output", "json"], prog_name="hpc-llm")
    assert caught.value.code == 2
    found = envelope(capsys.readouterr().out)
    assert found["command"] == " ".join(words)
    assert [p["code"] for p in found["problems"]] == ["cli.usage"]


def test_a_usage_error_is_text_for_people(user: Cli) -> None:
    done = user("plan")
    assert (done.code, done.out) == (2, "")
    assert "Missing argument 'JOB'" in done.err


def successes(home: Path) -> dict[str, tuple[str | Path, ...]]:
    job, run = home / "work" / "job.yaml", home / "work" / "run"
    return {
        "plan": ("plan", job),
        "plan --check-input": ("plan", job, "--check-input"),
        "preview": ("preview", job),
        "render": ("render", job, "--out", home / "rendered"),
        "submit": ("submit", job),
        "submit --dry-run": ("submit", job, "--dry-run"),
        "status": ("status", run),
        "logs": ("logs", run),
        "cancel": ("cancel", run),
        "resume": ("resume", run),
        "results": ("results", run),
        "results --verify": ("results", run, "--verify"),
        "peek": ("peek", run),
        "list": ("list",),
        "site list": ("site", "list"),
        "site show": ("site", "show"),
        "site check": ("site", "check", "dgx-h100"),
        "models list": ("models", "list"),
        "models show": ("models", "show", "llama-3.1-405b"),
        "schema job": ("schema", "job"),
        "schema site": ("schema", "site"),
        "config paths": ("config", "paths"),
    }


@pytest.mark.parametrize("name", successes(Path()))
def test_success_is_one_envelope_and_plain_text_says_something(user: Cli, name: str) -> None:
    words = successes(user.home)[name]
    done = user.ask(*words)
    assert done.code == 0, done.err
    assert name.startswith(done.json["command"])
    assert done.data
    plain = user(*words)
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.strip()


FAILURES = {
    "plan nosuch": 3,
    "preview nosuch": 3,
    "render nosuch --out x": 3,
    "submit nosuch": 3,
    "status nosuch": 3,
    "logs nosuch": 3,
    "cancel nosuch": 3,
    "resume nosuch": 3,
    "results nosuch": 3,
    "peek nosuch": 3,
    "site show nosuch": 3,
    "site check nosuch": 3,
    "models show nosuch": 3,
    "explain nosuch": 3,
}


@pytest.mark.parametrize("words", FAILURES)
def test_failure_is_one_envelope_and_plain_text_goes_to_stderr(user: Cli, words: str) -> None:
    done = user.ask(*words.split())
    assert done.code == FAILURES[words]
    assert done.codes
    plain = user(*words.split())
    assert (plain.code, plain.out) == (done.code, "")
    assert f"error[{done.codes[0]}]" in plain.err


def test_an_answer_that_is_not_utf8_is_json_all_the_same(user: Cli) -> None:
    done = user.ask("status", "caf\udce9")
    assert done.codes == ["rundir.missing"]


def test_the_schemas_accept_the_jobs_that_are_accepted(user: Cli) -> None:
    import yaml

    schema = user.ask("schema", "job").data
    job = yaml.safe_load((user.home / "work" / "job.yaml").read_text())
    jsonschema.validate(job, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {"nosuch": 1}, schema)


def test_the_places_follow_the_environment(user: Cli) -> None:
    found = user.ask("config", "paths").data
    assert found["runs"] == [str(user.home / ".local/state/hpc-llm/runs")]
    moved = Cli(user.home, {"XDG_STATE_HOME": "/s", "HPC_LLM_CONFIG_DIR": "/c"})
    found = moved.ask("config", "paths").data
    assert found["runs"] == ["/s/hpc-llm/runs"]
    assert found["defaults"][0] == "/c/defaults.yaml"


def test_a_site_file_is_listed_shown_and_checked(user: Cli, tmp_path: Path) -> None:
    sites = user.ask("site", "list").data["sites"]
    assert {"local", "dgx-h100"} <= sites.keys()
    assert (sites["dgx-h100"]["nodes"], sites["dgx-h100"]["ran"]) == (
        "h100 x 8, InfiniBand 8 x 400 Gbit/s",
        False,
    )
    assert sites["local"]["ran"]  # by the run of this user
    shown = user("site", "show", "dgx-h100")
    assert Path(sites["dgx-h100"]["path"]).read_text().rstrip("\n") in shown.out
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema: 1\nname: x\nschedule: {type: slurm}\n")
    checked = user.ask("site", "check", bad)
    assert checked.code == 3
    assert any(str(bad) in (p["where"] or "") for p in checked.json["problems"])


def test_a_site_file_that_is_broken_does_not_hide_the_others(user: Cli, tmp_path: Path) -> None:
    (tmp_path / "site_configs").mkdir()
    (tmp_path / "site_configs" / "broken.yaml").write_text("name: [")
    found = Cli(user.home, {"HPC_LLM_CONFIG_DIR": str(tmp_path)}).ask("site", "list")
    assert found.code == 0
    assert found.data["sites"]["broken"]["nodes"] == "unreadable"
    assert found.data["sites"]["nibi"]["nodes"] == "h100 x 8, Ethernet 200 Gbit/s"
    assert [p["code"] for p in found.json["problems"]] == ["spec.yaml"]


def test_models_have_shapes(user: Cli) -> None:
    listed = user.ask("models", "list").data["models"]
    assert 400e9 < listed["llama-3.1-405b"]["parameters"] < 410e9
    shown = user.ask("models", "show", "llama-3.1-405b").data
    assert (shown["layers"], shown["checkpoint"]) == (126, None)


def test_results_are_rows_in_input_order(user: Cli, run: Path) -> None:
    found = rows(user("results", run).out)
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert user.ask("results", run).data["rows"] == found
    assert {row["status"] for row in found} == {"ok", "error"}


def test_merged_results_are_the_same_rows(user: Cli, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "all rows.jsonl"
    done = user.ask("results", run, "--merge", target)
    assert target.read_text() == user("results", run).out
    assert done.data["ok"] + done.data["error"] == 30
    assert done.data["files"] == [str(target)]
    assert [path.name for path in tmp_path.iterdir()] == ["all rows.jsonl"]


def test_merging_again_replaces_the_file(user: Cli, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.jsonl"
    target.write_text("old\n" * 10_000)
    assert user("results", run, "--merge", target).code == 0
    assert len(rows(target.read_text())) == 30


def test_the_openai_form_has_answers_and_errors_in_two_files(
    user: Cli, run: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    done = user.ask("results", run, "--merge", target, "--format", "openai")
    good, bad = rows(target.read_text()), rows((tmp_path / "out.errors.jsonl").read_text())
    assert done.data["files"] == [str(target), str(tmp_path / "out.errors.jsonl")]
    assert (len(good), len(bad)) == (done.data["ok"], done.data["error"])
    assert sorted(row["custom_id"] for row in good + bad) == sorted(row["id"] for row in ROWS)
    assert {row["response"]["status_code"] for row in good} == {200}
    assert all(row["response"]["body"]["error"]["code"] == "engine_error" for row in bad)


def test_a_form_that_needs_two_files_is_refused_on_stdout(user: Cli, run: Path) -> None:
    done = user.ask("results", run, "--format", "openai")
    assert (done.code, done.codes) == (2, ["cli.usage"])


@pytest.mark.parametrize("where", ["", "nosuch/out.jsonl"])
def test_a_target_that_cannot_be_written_is_said(
    user: Cli, run: Path, tmp_path: Path, where: str
) -> None:
    done = user.ask("results", run, "--merge", tmp_path / where)
    assert (done.code, done.codes) == (8, ["output.unwritable"])
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_run_gives_its_rows_only_when_asked(
    user: Cli, half: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    for words in ((), ("--merge", target)):
        done = user.ask("results", half, *words)
        assert (done.code, done.codes) == (8, ["output.incomplete"])
    assert not target.exists()
    ids = [row["id"] for row in rows(user("results", half, "--partial").out)]
    everything = [row["id"] for row in ROWS]
    assert 0 < len(ids) < 30
    assert ids == [id_ for id_ in everything if id_ in ids]


def test_the_hint_for_a_missing_part_works(user: Cli, half: Path) -> None:
    """A part that is gone is answered again: DONE says nothing that the parts do not."""
    assert user("resume", half, "--wait").code == 0
    assert len(rows(user("results", half).out)) == 30


DAMAGE = {
    "not json": b"{",
    "cut": b'{"id": null, "row": [0, 0], "sta',
    "empty line": b"\n",
    "no object": b"7\n",
    "no status": b'{"id": null, "row": [0, 0]}\n',
    "row is no place": b'{"id": null, "row": 7, "status": "error", "error": {}}\n',
    "status unknown": b'{"id": null, "row": [0, 0], "status": "?"}\n',
    "ok without answer": b'{"id": null, "row": [0, 0], "status": "ok"}\n',
    "not utf-8": b'{"id": "\xff"}\n',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("form", ["jsonl", "openai"])
def test_a_damaged_part_is_named_and_nothing_is_merged(
    user: Cli, half: Path, tmp_path: Path, content: bytes, form: str
) -> None:
    part = min((half / "parts").iterdir())
    part.write_bytes(content)
    target = tmp_path / "out.jsonl"
    done = user.ask("results", half, "--partial", "--merge", target, "--format", form)
    assert (done.code, done.codes) == (8, ["output.damaged"])
    assert str(part) in done.json["problems"][0]["message"]
    assert not target.exists()


def test_a_part_twice_or_out_of_order_is_damage(user: Cli, half: Path) -> None:
    first, second, *_ = sorted((half / "parts").iterdir())
    second.write_bytes(first.read_bytes())
    assert user.ask("results", half, "--partial").codes == ["output.damaged"]


def test_the_status_of_a_run_with_a_damaged_part_is_no_bug(user: Cli, half: Path) -> None:
    part = min((half / "parts").iterdir())
    part.write_bytes(b"{")
    for path in (half / "metrics").iterdir():
        path.unlink()
    done = user.ask("status", half)
    assert (done.code, done.codes) == (8, ["output.damaged"])


def test_one_damaged_run_does_not_hide_the_others(user: Cli, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    for name in ("good", "bad"):
        job = write_job(tmp_path / name, rows=ROWS[:1], name=name, output={"path": f"run-{name}"})
        assert cli("submit", job, "--wait").code == 0
    (tmp_path / "bad" / "run-bad" / "run.json").write_text("{")
    assert cli.ask("status", "good").data["state"] == "done"
    listed = cli.ask("list")
    assert listed.code == 0
    assert "run-good" in json.dumps(listed.data)
    assert [p["code"] for p in listed.json["problems"]] == ["rundir.damaged"]


def test_a_name_that_two_runs_have_is_ambiguous(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    for name in ("one", "two"):
        assert cli("submit", write_job(tmp_path / name, rows=ROWS[:1]), "--wait").code == 0
    done = cli.ask("status", "t")
    assert (done.code, done.codes) == (3, ["rundir.ambiguous"])


def test_logs_end_where_they_are_told_to(user: Cli, run: Path) -> None:
    for path in (run / "logs").glob("*.log"):
        path.write_text("".join(f"line {n}\n" for n in range(50_000)))
    found = user.ask("logs", run, "-n", "3").data["logs"]
    assert {tuple(tail) for tail in found.values()} == {("line 49997", "line 49998", "line 49999")}
    for none in ("0", "-1"):
        assert user("logs", run, "-n", none).code == 2
