"""A sample of the input: what it finds, what it costs, and that it refuses nothing."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from run_making import json_lines

from launcher.data.inputs import freeze
from launcher.data.rows import first_rows
from launcher.data.sample import EACH, FIRST_ROWS, PLACES, take_sample
from launcher.errors import SpecError
from launcher.inputcheck import InputReport, build_prompts, warning_of
from launcher.plan.types import InputFile
from launcher.prepare import Prepared, prepare

SPREAD_ROWS = PLACES * EACH
pytestmark = pytest.mark.usefixtures("own_home")


def job_over(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    limit: int | None = None,
    with_tokens: bool = False,
    prompt: str = "{{ text }}",
    **changes: Any,
) -> Prepared:
    (folder / "data").mkdir(parents=True)
    for name, content in files.items():
        (folder / "data" / name).write_bytes(content)
    spec = {
        "schema": 1,
        "name": "t",
        "engine": "echo",
        "model": "echo",
        "input": {"path": "data", "prompt": prompt, "chat": False},
        "output": {"path": "run"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec | changes))
    return prepare(folder / "job.yaml", site="local", limit=limit, with_tokens=with_tokens)


def checked(folder: Path, rows: Sequence[Any], **options: Any) -> InputReport:
    return job_over(folder, {"a.jsonl": json_lines(rows)}, **options).report


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"text": f"row {n:07}", "id": n} for n in range(count)]


def test_a_small_input_is_looked_at_whole(tmp_path: Path) -> None:
    found = checked(tmp_path, numbered(FIRST_ROWS))
    assert (found.rows, found.whole, found.rows_estimate) == (FIRST_ROWS, True, FIRST_ROWS)
    assert (found.bad, found.duplicate_ids, found.equal_prompts) == ((), 0, 0)
    assert found.characters is not None
    assert dataclasses.astuple(found.characters) == (11, 11, 11)
    assert warning_of(found, ()) is None


@pytest.mark.parametrize("count", [FIRST_ROWS + 1, 1000, 50_000])
def test_a_large_input_is_sampled_over_all_of_it_at_a_constant_cost(
    tmp_path: Path, count: int
) -> None:
    found = checked(tmp_path, numbered(count))
    assert not found.whole
    assert FIRST_ROWS < found.rows <= FIRST_ROWS + SPREAD_ROWS
    assert found.duplicate_ids == 0, "no row is looked at twice"
    assert found.rows_estimate == pytest.approx(count, rel=0.05)


def test_rows_that_are_bad_far_inside_are_found(tmp_path: Path) -> None:
    rows = [*numbered(1000), *({"txt": n} for n in range(4000))]
    found = checked(tmp_path, rows)
    (bad,) = found.bad
    assert (bad.code, 100 < bad.rows <= SPREAD_ROWS) == ("missing_field", True)
    problem = warning_of(found, ())
    assert problem is not None
    assert (problem.code, problem.severity) == ("input.bad-rows", "warning")
    assert f"{bad.rows} of {found.rows} sampled rows" in problem.message
    assert bad.where in problem.message


def test_errors_are_told_by_code_and_line(tmp_path: Path) -> None:
    lines = [b'{"text": "good"}', b"", b"{torn", b"[1]", b'{"text": ""}', b"{torn"]
    prepared = job_over(tmp_path, {"a.jsonl": b"\n".join(lines), "b.txt": b"fine\n\xff\n"})
    found = prepared.report
    folder = tmp_path / "data"
    assert [(bad.code, bad.rows, bad.where) for bad in found.bad] == [
        ("invalid_json", 2, f"{folder}/a.jsonl:3"),
        ("not_an_object", 1, f"{folder}/a.jsonl:4"),
        ("empty_prompt", 1, f"{folder}/a.jsonl:5"),
        ("invalid_utf8", 1, f"{folder}/b.txt:2"),
    ]
    assert (found.rows, found.bad_rows) == (7, 5)


def test_a_limit_is_all_there_is(tmp_path: Path) -> None:
    found = checked(tmp_path, numbered(1000), limit=7)
    assert (found.rows, found.whole) == (7, True)


def test_a_limit_beyond_any_input_is_none(tmp_path: Path) -> None:
    found = checked(tmp_path, numbered(7), limit=10**20)
    assert (found.rows, found.whole) == (7, True)


def test_a_limit_beyond_the_first_rows_keeps_the_sample_inside(tmp_path: Path) -> None:
    rows = [*numbered(600), *({"txt": n} for n in range(5000))]
    found = checked(tmp_path, rows, limit=600)
    assert found.bad == ()
    assert found.rows_estimate == pytest.approx(600, rel=0.05)


def test_equal_rows_are_counted_and_legal(tmp_path: Path) -> None:
    rows = [{"text": "same", "id": n // 2} for n in range(10)]
    found = checked(tmp_path, rows)
    assert (found.duplicate_ids, found.equal_prompts) == (5, 9)
    assert warning_of(found, ()) is None


def test_lengths_are_those_of_final_prompts(tmp_path: Path) -> None:
    rows = [{"text": "x" * n} for n in range(1, 101)]
    found = checked(tmp_path, rows, prompt="<{{ text }}>")
    assert found.characters is not None
    assert dataclasses.astuple(found.characters) == (52, 97, 102)


def test_compressed_files_are_entered_at_their_starts_only(tmp_path: Path) -> None:
    content = json_lines(numbered(20_000))
    broken = content[: len(content) // 2] + b"\n{torn\n"
    files = {f"{n}.jsonl.gz": gzip.compress(broken) for n in range(3)}
    files |= {"plain.jsonl": content}
    found = job_over(tmp_path, files).report
    assert FIRST_ROWS < found.rows < FIRST_ROWS + SPREAD_ROWS
    assert found.rows_estimate == pytest.approx(50_000, rel=0.1)


def test_an_empty_sample_of_prompts_has_no_lengths(tmp_path: Path) -> None:
    prepared = job_over(tmp_path, {"a.jsonl": json_lines(numbered(3))})
    (tmp_path / "data" / "a.jsonl").write_bytes(b"x" * prepared.identity.inputs[0].size)
    sample = take_sample(prepared.identity.inputs)
    found = build_prompts(prepared.identity, sample).report()
    assert (found.rows, found.bad_rows, found.characters) == (1, 1, None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model of 16 positions whose tokenizer takes each word for a token."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 16,
    }
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(
        "{{ raise_exception('no') if 'refuse' in messages[0].content }}"
        "<s> {{ messages[0].content }} </s>"
    )
    return folder


WORDS = [{"text": " ".join(["word"] * n)} for n in (1, 13, 14, 20)]


def test_tokens_are_counted_where_asked_and_compared_with_the_context(
    tmp_path: Path, checkpoint: Path
) -> None:
    pytest.importorskip("tokenizers")
    cheap, found = (
        job_over(
            tmp_path / f"job-{with_tokens}",
            {"a.jsonl": json_lines([*WORDS, {"text": "refuse"}])},
            with_tokens=with_tokens,
            engine="transformers",
            model=str(checkpoint),
            input={"path": "data", "prompt": "{{ text }}"},
        ).report
        for with_tokens in (False, True)
    )
    assert (cheap.tokens, cheap.over_context, cheap.context_tokens) == (None, None, 16)
    assert found.tokens is not None
    assert dataclasses.astuple(found.tokens) == (15, 16, 22)
    assert found.over_context == 2
    assert [(bad.code, bad.rows) for bad in found.bad] == [("template_error", 1)]


def test_a_chat_template_that_fails_is_a_warning(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    prepared = job_over(
        tmp_path / "job",
        {"a.jsonl": json_lines(WORDS)},
        engine="transformers",
        model=str(checkpoint),
        input={"path": "data", "prompt": "{{ text }}"},
    )
    report = prepared.report
    assert [(bad.code, bad.rows) for bad in report.bad] == [("template_error", len(WORDS))]
    warning = warning_of(report, ())
    assert warning is not None
    assert "TypeError" in warning.message


def test_without_the_package_there_are_no_tokens(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    prepared = job_over(
        tmp_path / "job",
        {"a.jsonl": json_lines(WORDS)},
        with_tokens=True,
        engine="transformers",
        model=str(checkpoint),
        input={"path": "data", "prompt": "{{ text }}"},
    )
    assert prepared.report.tokens is None


def mean_tokens(report: InputReport) -> float:
    assert report.prompt_tokens is not None
    return report.prompt_tokens.likely


def test_rows_of_other_lengths_in_other_files_are_all_counted(tmp_path: Path) -> None:
    """Of as many bytes, so that nearly all rows are of the one with the short rows."""
    short, long = [{"text": "a" * 40}] * 20_000, [{"text": "b" * 4000}] * 250
    files = {"0.jsonl": json_lines(long), "1.jsonl": json_lines(short)}
    found = job_over(tmp_path, files).report
    assert found.rows_estimate == pytest.approx(20_250, rel=0.1)
    assert mean_tokens(found) == pytest.approx((20_000 * 10 + 250 * 1000) / 20_250, rel=0.2)
    assert found.rows_range is not None
    assert found.rows_range.least <= 20_250 <= found.rows_range.most


def test_a_directory_of_many_files_of_one_row_is_counted(tmp_path: Path) -> None:
    files = {f"{n:04}.jsonl": json_lines([{"text": "x" * 100}]) for n in range(900)}
    found = job_over(tmp_path, files).report
    assert found.rows_estimate == pytest.approx(900, rel=0.05)
    assert mean_tokens(found) == pytest.approx(25)


def test_compressed_files_are_counted_by_their_heads_with_more_doubt(tmp_path: Path) -> None:
    plain = job_over(tmp_path / "plain", {"a.jsonl": json_lines(numbered(9000))})
    packed = {f"{n}.jsonl.gz": gzip.compress(json_lines(numbered(1500))) for n in range(6)}
    of_plain, of_packed = (
        one.report.rows_range for one in (plain, job_over(tmp_path / "packed", packed))
    )
    assert of_plain is not None
    assert of_packed is not None
    assert of_packed.least <= 9000 <= of_packed.most
    assert of_packed.most / of_packed.least > of_plain.most / of_plain.least


def test_one_row_is_known_exactly(tmp_path: Path) -> None:
    found = checked(tmp_path, [{"text": "x" * 80}])
    assert found.rows_range is not None
    assert (found.rows_range.least, found.rows_range.most) == (1, 1)
    assert (mean_tokens(found), found.counted) == (20, False)


def test_rows_that_bring_their_own_lengths_are_taken_at_their_word(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 7}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    rows: list[dict[str, Any]] = [{"prompt": [1, 2, 3]}, {"prompt": "four" * 4}, line]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(json_lines(rows))
    spec = {
        "schema": 1,
        "name": "t",
        "engine": "echo",
        "model": "echo",
        "input": {"path": "data"},
        "sampling": {"max_tokens": 21},
        "output": {"path": "run"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    found = prepare(tmp_path / "job.yaml", site="local").report
    assert mean_tokens(found) == pytest.approx(
        (3 + len("<user> " + "four" * 4) / 4 + len("<user> x") / 4) / 3
    )
    assert found.most_new_tokens is not None
    assert found.most_new_tokens.likely == pytest.approx((21 + 21 + 7) / 3)


def test_rows_that_are_longer_than_the_units_they_lie_in_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "y" * (3000 + 500 * (n % 3))} for n in range(400)]
    found = checked(tmp_path, rows)
    assert found.rows_range is not None
    assert found.rows_estimate == pytest.approx(400, rel=0.05)
    assert mean_tokens(found) == pytest.approx(3500 / 4, rel=0.05)


def test_few_long_rows_behind_many_short_ones_are_not_counted_by_the_short_ones(
    tmp_path: Path,
) -> None:
    rows = [{"text": "a"}] * 2000 + [{"text": "word " * 60_000}] * 30
    report = checked(tmp_path, rows)
    assert report.rows_range is not None
    assert report.rows_range.likely < 10 * len(rows)


def test_a_table_that_knows_its_rows_is_believed(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(
        {"text": [f"row {n}" * (n % 7) for n in range(999)]}
    )
    (tmp_path / "there").mkdir()
    parquet.write_table(table, tmp_path / "there" / "a.parquet")
    content = (tmp_path / "there" / "a.parquet").read_bytes()
    found = job_over(tmp_path / "job", {"a.parquet": content}).report
    assert found.rows_range is not None
    assert (found.rows_range.least, found.rows_range.most) == (999, 999)


def test_empty_files_between_others_count_nothing(tmp_path: Path) -> None:
    rows = json_lines(numbered(700))
    files = {"0.jsonl": b"", "1.jsonl": rows, "2.jsonl": b"\n\n", "3.jsonl": rows, "4.jsonl": b""}
    files["5.jsonl.gz"] = gzip.compress(b"")
    found = job_over(tmp_path, files).report
    assert found.rows_estimate == pytest.approx(1400, rel=0.05)


# A hook cannot be taken away again, so it keeps no more than one test needs.
_READ: deque[str] = deque(maxlen=1000)


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and args[2] & os.O_ACCMODE == os.O_RDONLY:
        _READ.append(str(args[0]))


sys.addaudithook(_note)


def read_bytes() -> int:
    """What this process has asked files for so far (proc(5), /proc/pid/io, rchar)."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("limit", [None, 7, 150, 2000])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_file_is_opened_once_for_all_that_is_said_of_it(
    tmp_path: Path, limit: int | None, *, with_tokens: bool
) -> None:
    files = {f"{n}.jsonl": json_lines(numbered(9000)) for n in range(3)}
    _READ.clear()
    job_over(tmp_path, files, limit=limit, with_tokens=with_tokens)
    found = Counter(Path(name).name for name in _READ if Path(name).parent == tmp_path / "data")
    assert found == Counter({"0.jsonl"} if limit else files.keys())


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "txt", "parquet"])
def test_no_more_is_read_than_a_file_holds(tmp_path: Path, kind: str) -> None:
    """Which 40 looks of 256 KiB at a file of 2 MB would be."""
    entry = one_file(tmp_path, kind, 20_000)
    before = read_bytes()
    found = take_sample([entry])
    assert read_bytes() - before <= 1.1 * entry.size + 100_000
    assert len(found.rows) >= FIRST_ROWS
    assert len({(row.file, row.offset) for row in found.rows}) == len(found.rows)


def one_file(folder: Path, kind: str, rows: int) -> InputFile:
    path = folder / f"a.{kind}"
    texts = [f"{n:07} {hashlib.sha256(bytes([n % 251])).hexdigest()}" for n in range(rows)]
    lines = [f'{{"text": "{text}"}}' for text in texts] if "json" in kind else ["text", *texts]
    content = "\n".join(lines).encode()
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": texts}), path)
    else:
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    (entry,) = freeze([str(path)], base=folder)
    return entry


@given(
    lengths=st.lists(st.lists(st.integers(0, 4000), max_size=120), min_size=1, max_size=12),
    packed=st.lists(st.booleans(), min_size=12, max_size=12),
    limit=st.none() | st.integers(1, 900),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_is_of_rows_of_the_run_each_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[list[int]],
    packed: list[bool],
    limit: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    for number, own in enumerate(lengths):
        content = json_lines([{"text": "x" * length} for length in own])
        path = folder / f"{number:02}.jsonl{'.gz' * packed[number]}"
        path.write_bytes(gzip.compress(content) if packed[number] else content)
    inputs = freeze([str(folder)], base=folder) if any(lengths) else ()
    every = first_rows(inputs, sys.maxsize)
    found = take_sample(inputs, limit)
    taken = [(row.file, row.offset) for row in found.rows]
    known = [(row.file, row.offset) for row in every[:limit]]
    assert taken == sorted(set(taken))
    assert set(taken) <= set(known)
    assert taken[:FIRST_ROWS] == known[:FIRST_ROWS]
    assert found.whole == (len(known) <= FIRST_ROWS) == (len(taken) == len(known))
    if not found.whole:
        shares = sum(at.share_bytes for at in found.places)
        assert shares == pytest.approx(found.extent_bytes)
    for at in found.places:
        assert list(at.begins) == sorted(at.begins)
        assert len(at.begins) - len(at.rows) in (0, 1)


def test_what_rows_further_inside_can_pass_is_no_error(tmp_path: Path) -> None:
    rows = [*({"txt": n} for n in range(300)), *numbered(5000)]
    prepared = job_over(tmp_path, {"a.jsonl": json_lines(rows)})
    (warning,) = prepared.warnings
    assert (warning.code, warning.severity) == ("input.bad-rows", "warning")
    assert warning.where is not None
    assert warning.where.path == str(tmp_path / "job.yaml")
    assert "{{ name | default('') }}" in (warning.hint or "")


def test_a_limit_is_refused_by_its_own_rows_alone(tmp_path: Path) -> None:
    rows = [*({"txt": n} for n in range(7)), *numbered(50)]
    with pytest.raises(SpecError) as caught:
        checked(tmp_path / "7", rows, limit=7)
    (problem,) = caught.value.problems
    assert (problem.code, problem.message.partition(":")[0]) == (
        "input.missing-field",
        "7 of 7 sampled rows",
    )
    assert checked(tmp_path / "8", rows, limit=8).bad_rows == 7


def test_counted_tokens_change_nothing_of_the_plan(tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("tokenizers")
    cheap, found = (
        job_over(
            tmp_path / f"job-{with_tokens}",
            {"a.jsonl": json_lines(WORDS)},
            with_tokens=with_tokens,
            engine="transformers",
            model=str(checkpoint),
            input={"path": "data", "prompt": "{{ text }}"},
        )
        for with_tokens in (False, True)
    )
    assert (cheap.report.counted, found.report.counted) == (False, True)
    assert mean_tokens(cheap.report) != mean_tokens(found.report)
    assert cheap.resolution.plan.layout == found.resolution.plan.layout
    assert cheap.resolution.plan.engine_options == found.resolution.plan.engine_options
