"""What the documents, the jobs and the site files say is so."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import errors
from launcher.errors import HpcLlmError
from launcher.resources import error_pages
from launcher.spec.rules import read_job
from launcher.spec.source import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SITES = sorted((ROOT / "site_configs").glob("*.yaml"))
# The site that each job is meant for, where that is not the DGX H100.
JOB_SITES = {"quickstart": "local"}

FAMILIES = (
    "cli|spec|plan|site|model|input|rundir|run|engine|gpu|slurm|local|output|template|explain"
    "|scale|retry|container|preflight"
)
CODE = re.compile(rf"({FAMILIES})\.[a-z][a-z-]*")
ROW_CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# Files and fields that only look like codes.
NO_CODES = {
    *("engine.yaml", "model.path", "model.safetensors"),
    *("run.json", "rundir.py", "site.yaml"),
}
# The functions whose arguments hold the code of a row.
ROW_CODE_MAKERS = {"RowError", "decoded", "super().__init__"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """``command`` with this environment's programs first, its two outputs in one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


# --- pages


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.partition("#")[0] for target in targets if "://" not in target]

    assert [target for target in local if not (page.parent / target).exists()] == []


def test_readme_and_contributing_stay_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 120
    assert len(text_of("CONTRIBUTING.md").splitlines()) <= 100


def test_make_targets_that_are_mentioned_exist_and_all_are_explained() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), re.MULTILINE))
    places = [*map(relative, PAGES), ".ci/run", ".pre-commit-config.yaml"]
    mentioned = {
        name
        for place in places
        for name in re.findall(r"(?:`|exec |#   )make ([a-z-]+)", text_of(place))
    }
    explained = set(
        re.findall(r"^\| `make ([a-z-]+)` \|", text_of("CONTRIBUTING.md"), re.MULTILINE)
    )

    assert mentioned <= targets
    assert explained == targets - {"help"}


def test_make_without_a_target_lists_all_targets() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), re.MULTILINE))
    listed = re.findall(r"^make ([a-z-]+) +\S", run("make").stdout, re.MULTILINE)

    assert sorted(listed) == sorted(targets)


def test_places_that_contributing_names_exist() -> None:
    text = text_of("CONTRIBUTING.md")
    paths = re.findall(
        r"`((?:launcher|tests|templates|site_configs|docs|constraints)/[^`]*)`", text
    )

    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_layer_picture_is_the_import_contract() -> None:
    contract = text_of("pyproject.toml").partition('type = "layers"')[2].partition("\n]")[0]
    # Layers in parentheses are optional: they may not be there yet.
    wanted = [
        set(re.findall(r"(?<!\()launcher\.([a-z]+)", line))
        for line in contract.splitlines()
        if "launcher." in line
    ]
    (picture,) = [f for f in fences(text_of("CONTRIBUTING.md"), "") if f.startswith("cli")]
    drawn = [set(re.split(r"\s{3,}", line)[0].split()) for line in picture.splitlines()]

    assert drawn == wanted


def test_the_job_file_of_the_readme_is_well_formed() -> None:
    (job,) = fences(text_of("README.md"), "yaml")

    assert read_job(parse("README.md", job)).name == "summaries"


# --- the transcript


def transcript() -> Iterator[tuple[str, str]]:
    (block,) = fences(text_of("README.md"), "console")
    for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = entry.partition("\n")
        yield command, output


def matches(expected: str, output: str) -> bool:
    """Whether ``output`` is as expected, where ``…`` stands for anything."""
    pattern = re.escape(expected).replace("\n…\\\n", "\n(?:.*\n)*").replace("…", ".*")
    return re.fullmatch(pattern, output) is not None


@pytest.mark.usefixtures("own_home")
def test_the_transcript_of_the_readme_happens(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    (jobs / "prompts").mkdir(parents=True)
    for name in ("quickstart.yaml", "prompts/questions.jsonl"):
        (jobs / name).write_bytes((ROOT / "jobs" / name).read_bytes())

    for command, expected in transcript():
        done = run("bash", "-c", command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert matches(expected, done.stdout), f"$ {command}\n{done.stdout}"


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\n…\nb\n", "a\nb\n", True),
        ("a\n…\nb\n", "a\n1\n2\nb\n", True),
        ("a…\n", "a1\n", True),
        ("a…\n", "a1\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_a_transcript_matches_what_it_should_only(expected: str, output: str, same: bool) -> None:  # noqa: FBT001 - a parameter of the case
    assert matches(expected, output) is same


COMMIT = re.compile(r"@([0-9a-f]{8})\b")


def test_each_commit_of_another_project_that_code_goes_by_is_in_the_reference() -> None:
    cited = {
        commit
        for place in ("launcher", "tests/standins")
        for path in (ROOT / place).rglob("*.py")
        for commit in COMMIT.findall(path.read_text(encoding="utf-8"))
    }
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))

    assert cited
    assert cited - set(COMMIT.findall(pages)) == set()


# --- jobs and sites


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=relative)
def test_a_shipped_job_can_be_planned_on_its_site(job: Path) -> None:
    site = JOB_SITES.get(job.stem, "dgx-h100")

    done = run("hpc-llm", "plan", str(job), "--site", site)

    assert done.returncode == 0, done.stdout
    assert f"{job.stem} on site {site}" in done.stdout


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize("site", SITES, ids=relative)
def test_a_shipped_site_file_is_well_formed_and_named_like_its_file(site: Path) -> None:
    checked = run("hpc-llm", "site", "check", str(site))

    assert checked.returncode == 0, checked.stdout
    assert f"\nname: {site.stem}\n" in site.read_text()


@pytest.mark.parametrize("site", SITES, ids=relative)
def test_each_value_of_a_shipped_site_file_has_its_source(site: Path) -> None:
    bare = [
        line
        for line in site.read_text().splitlines()
        if holds_a_value(line) and not re.search(r" # (?:.*; )?\[\w+\]", line)
    ]

    assert bare == []


def holds_a_value(line: str) -> bool:
    """Whether a line of YAML says more than a key, and not which file it is."""
    code = re.sub(r"(^|\s)#.*", "", line).strip()
    return bool(code) and not re.fullmatch(r"[\w.-]+:( &\w+)?|(schema|name): .*", code)


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("# a: b", False),
        ("", False),
        ("name: x", False),
        ("  - name: x", True),
        ("    fabric: &hsn", False),
        ("    fabric: *hsn # [a]", True),
        ("  time_limit: 1d # [a]", True),
        ("        - {hca: mlx5_0, gpus: [0]}", True),
        ("  gpu: # [a]", False),
    ],
)
def test_a_line_with_a_value_is_told_from_one_without(line: str, holds: bool) -> None:  # noqa: FBT001 - a parameter of the case
    assert holds_a_value(line) is holds


@pytest.mark.parametrize("site", SITES, ids=relative)
def test_the_sources_of_a_site_file_are_public_and_those_that_it_uses(site: Path) -> None:
    head, _, body = site.read_text().partition("\nschema:")
    listed = re.sub(r"\n# ", " ", head.partition("# Sources: ")[2])
    # Several tags may share what follows them.
    sources = re.findall(r"((?:\[\w+\] )+)([^\[]+)", listed)
    used = {
        tag
        for line in body.splitlines()
        for tag in re.findall(r"\[\w+\]", line.partition(" # ")[2])
    }

    assert used == {tag for tags, _ in sources for tag in tags.split()}
    assert [text for tags, text in sources if tags != "[ours] " and not PUBLIC.search(text)] == []


# A page's address, or a repository at a commit, or more of the source before.
PUBLIC = re.compile(r"\b\w[\w-]*(\.[\w-]+)+/|@[0-9a-f]{7,}|^the same\b|^docs/")


@pytest.mark.parametrize("site", SITES, ids=relative)
def test_a_site_file_says_what_is_unknown_and_that_nobody_here_ran_it(site: Path) -> None:
    head = site.read_text().partition("\nschema:")[0]

    assert site.stem == "local" or ("Never run by us" in head and re.search("[Uu]nknown", head))


# --- errors


def trees() -> Iterator[ast.AST]:
    for path in sorted((ROOT / "launcher").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def texts(nodes: Iterator[ast.AST]) -> set[str]:
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def raised_codes() -> set[str]:
    return {text for text in texts(trees()) if CODE.fullmatch(text)} - NO_CODES


def raised_row_codes() -> set[str]:
    """Literal codes given to `RowError`, or through the few functions that make one."""
    calls = (n for n in trees() if isinstance(n, ast.Call))
    arguments = (
        argument
        for call in calls
        if ast.unparse(call.func) in ROW_CODE_MAKERS
        for argument in call.args
    )
    return {text for text in texts(iter(arguments)) if ROW_CODE.fullmatch(text)}


def test_every_error_code_has_a_page_and_every_page_a_code() -> None:
    assert set(error_pages()) == raised_codes() | raised_row_codes()


def test_no_error_code_is_put_together_or_of_an_unknown_family() -> None:
    calls = [n for n in trees() if isinstance(n, ast.Call)]
    named = [
        call.args[0]
        for call in calls
        if ast.unparse(call.func).split(".")[-1] in {"Problem", "_Rule"} and call.args
    ]
    literals = [n.value for n in named if isinstance(n, ast.Constant)]

    assert [ast.unparse(n) for n in named if isinstance(n, ast.JoinedStr | ast.BinOp)] == []
    assert [code for code in literals if not CODE.fullmatch(str(code))] == []


def test_each_page_of_an_error_is_short_and_starts_with_a_sentence() -> None:
    for code, page in error_pages().items():
        assert 1 <= len(page.splitlines()) <= 5, code
        assert page[0].isupper() or page[0] == "`", code
        assert page.endswith((".", "}`.")), code


def test_exit_codes_are_the_same_everywhere() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, HpcLlmError)]
    wanted = {0, 2, 130} | {kind.exit_code for kind in kinds}
    listed = re.findall(r"^\| (\d+) \|", text_of("docs/reference/errors.md"), re.MULTILINE)
    (row,) = re.findall(r"^\| (0 \|.*130) \|$", text_of("README.md"), re.MULTILINE)
    spoken = re.findall(r"\b(\d+)\s+[a-z]", run("hpc-llm", "--help").stdout.partition("codes:")[2])

    assert set(map(int, listed)) == wanted
    assert set(map(int, row.split("|"))) == wanted
    assert {int(code) for code in spoken} >= wanted


# --- constraints


@pytest.mark.parametrize("lock", sorted((ROOT / "constraints").glob("*.txt")), ids=relative)
def test_constraints_pin_everything_by_hash_and_name_no_registry(lock: Path) -> None:
    text = lock.read_text()
    packages = re.findall(r"^([a-z0-9][a-z0-9.-]*)==\S+ \\\n    --hash=sha256:", text, re.MULTILINE)

    assert len(packages) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    assert "://" not in text
    assert [p for p in packages if re.match(r"torch$|triton$|nvidia-|cuda-", p)] == []


def test_constraints_of_both_kinds_agree() -> None:
    for dev in (ROOT / "constraints").glob("dev-*.txt"):
        local = dev.with_name(dev.name.replace("dev-", "local-"))
        pins = [
            dict(re.findall(r"^(\S+)==(\S+)", p.read_text(), re.MULTILINE)) for p in (dev, local)
        ]

        assert pins[0].keys() & pins[1].keys()
        assert [n for n in pins[0].keys() & pins[1].keys() if pins[0][n] != pins[1][n]] == []
