"""Any text survives bash and sbatch, and no text makes a script unprintable."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import PurePosixPath

import pytest
import sbatch_tokens
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.render.quoting import Raw, sbatch_value, shell_path, shell_value

HOSTILE = [
    "",
    " ",
    "$(touch x)",
    "`touch x`",
    "${HOME}",
    "a\\b",
    "\\",
    "'",
    "''",
    '"',
    "!!",
    "~",
    "*",
    "{a,b}",
    "#SBATCH --nodes=9",
    "a#b",
    "-n",
    "%j",
    "a=b",
    "&& touch x",
    "\n#SBATCH --nodes=9\n",
    "\r\n",
    "\x1b[31mred\x1b[0m",
    "\x1b1",
    "\x01\x02a",
    "\\x41",
    "\\n",
    "$'\\n'",
    "tab\there",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\N{GRINNING FACE}\n",
    "\N{RIGHT-TO-LEFT OVERRIDE}",
    "\N{LINE SEPARATOR}",
    "\N{NO-BREAK SPACE}",
    "\N{COMBINING ACUTE ACCENT}'\n'",
    "\x7f\x80\xff",
]
# Control characters and what the two languages give a meaning to, more often than chance would.
CHARACTERS = st.one_of(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    st.sampled_from("'\"\\$`!#%&;|<>()[]{}*?~=\n\r\t\v\f\x1b\x7f 0123456789abcdefABCDEF"),
)
TEXTS = st.text(CHARACTERS, max_size=12)


def read_by_bash(words: list[str], locale: str) -> list[str]:
    """The words as bash sees them; one process for all."""
    script = "".join(f"printf '%s\\0' {word}\n" for word in words)
    done = subprocess.run(
        ["bash", "--norc", "-s"],
        input=script.encode(),
        capture_output=True,
        check=True,
        env={"LC_ALL": locale, "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == b""
    *found, rest = done.stdout.decode().split("\0")
    assert rest == ""
    return found


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_bash_reads_each_hostile_text_back_as_one_word(locale: str) -> None:
    assert read_by_bash([shell_value(text) for text in HOSTILE], locale) == HOSTILE


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=30, max_size=60))
def test_bash_reads_any_text_back_as_one_word(texts: list[str]) -> None:
    assert read_by_bash([shell_value(text) for text in texts], "C") == texts


def test_bash_reads_every_single_character_back() -> None:
    characters = [chr(code) for code in [*range(1, 0x400), *range(0x2000, 0x2100), 0x10FFFF]]
    texts = [f"{c}a0\n" for c in characters]  # a digit behind it could lengthen an escape
    assert read_by_bash([shell_value(text) for text in texts], "C") == texts


@given(TEXTS)
@example("\N{LINE SEPARATOR}")
def test_a_word_is_printable_whatever_is_in_it(text: str) -> None:
    assert shell_value(text).isprintable()


@given(TEXTS.filter(str.isprintable))
def test_a_printable_text_is_quoted_as_the_standard_library_does(text: str) -> None:
    assert shlex.split(shell_value(text)) == [text]


def test_numbers_and_paths_have_a_form() -> None:
    assert [shell_value(8), shell_value(-1)] == ["8", "-1"]
    assert shell_value(PurePosixPath("/a b")) == "'/a b'"


def test_raw_text_stays_as_it_is_and_is_no_longer_raw_once_it_is_changed() -> None:
    assert shell_value(Raw("a | b")) == "a | b"
    assert shell_value(Raw("a | b") + "") == "'a | b'"
    assert shell_value(Raw("a").upper()) == "A"


@pytest.mark.parametrize("value", [None, True, False, [], ["a"], (), {}, 1.5, b"a", object()])
def test_a_value_without_a_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        shell_value(value)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\n\0"])
def test_a_word_with_nul_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        shell_value(text)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        shell_value("\ud800")


@given(st.text(CHARACTERS).filter(str.isprintable))
@example("")
@example("#")
@example("a\\")
@example("\\'\\\"")
@example("' '")
@example('"')
def test_sbatch_reads_any_printable_text_back_as_one_argument(text: str) -> None:
    line = f" --x={sbatch_value(text)}"
    assert sbatch_tokens.words(line) == [f"--x={text}"]
    assert sbatch_tokens.words(f"{line} --y") == [f"--x={text}", "--y"]


@given(TEXTS.filter(lambda text: not text.isprintable()))
@example("\n#SBATCH --nodes=9")
@example("\N{NO-BREAK SPACE}")
@example("\N{LINE SEPARATOR}")
@example("\r")
def test_a_directive_refuses_line_breaks_and_control_characters(text: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        sbatch_value(text)


def test_what_sbatch_needs_no_quotes_for_stays_readable() -> None:
    assert sbatch_value("gpu:h100:8") == "gpu:h100:8"
    assert sbatch_value("B:USR1@300") == "B:USR1@300"
    assert sbatch_value("") == '""'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("   ", []),
        (" --a --b=c", ["--a", "--b=c"]),
        (" --a='b c'", ["--a=b c"]),
        (r" --a='b\c'", ["--a=bc"]),
        (r" --a=b\ c", ["--a=b", "c"]),
        (r" --a='b\'c'", ["--a=b'c"]),
        (' --a="b\'c"', ["--a=b'c"]),
        (" --a=b#c", ["--a=b"]),
        (" --a='b#c'", ["--a=b#c"]),
        (r" --a=b\#c", ["--a=b#c"]),
        (' --a="" --b', ["--a=", "--b"]),
        (' "" --b', []),
        (" --a # --b", ["--a"]),
        ("\t--a\r", ["--a"]),
    ],
)
def test_the_port_splits_a_line_by_the_documented_rules(line: str, expected: list[str]) -> None:
    assert sbatch_tokens.words(line) == expected


@pytest.mark.parametrize("line", [' --a="b', " --a='", r' --a="b\"'])
def test_the_port_refuses_an_unmatched_quote(line: str) -> None:
    with pytest.raises(sbatch_tokens.UnmatchedQuoteError):
        sbatch_tokens.words(line)


def test_the_port_stops_at_the_first_command() -> None:
    script = "#!/bin/bash\n#SBATCH --a\n\n# text\n  # text\n#SBATCH --b\ncd /\n#SBATCH --c\n"
    assert sbatch_tokens.script_words(script) == ["--a", "--b"]


def test_the_standard_library_alone_would_lose_a_backslash() -> None:
    assert sbatch_tokens.words(f"--x={shlex.quote(chr(92) + 'a')}") == ["--x=a"]


# A path that names variables


def expanded(path: str, **environ: str) -> subprocess.CompletedProcess[str]:
    script = f"printf %s {shell_path(path)}"
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **environ}
    return subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("$SLURM_TMPDIR", "/l/a b"),
        ("${SLURM_TMPDIR}x/y z", "/l/a bx/y z"),
        ("/local/$USER/$SLURM_TMPDIR", "/local/me//l/a b"),
        ("/scratch", "/scratch"),
        ("/a'b\"c", "/a'b\"c"),
    ],
)
def test_variables_of_a_path_are_expanded_into_one_word(path: str, word: str) -> None:
    assert expanded(path, SLURM_TMPDIR="/l/a b", USER="me").stdout == word


@pytest.mark.parametrize("value", [text for text in HOSTILE if text and "\0" not in text])
def test_neither_a_path_nor_its_variables_run_anything(value: str) -> None:
    found = expanded("/a/$X/b", X=value)
    assert (found.returncode, found.stdout) == (0, f"/a/{value}/b".replace("\r\n", "\n"))
    literal = expanded(f"/a{value}".replace("$", "").replace("\r", ""))
    assert literal.stdout == f"/a{value}".replace("$", "").replace("\r", "")


@pytest.mark.parametrize("environ", [{}, {"SLURM_TMPDIR": ""}])
def test_a_path_of_an_unset_variable_stops_the_script(environ: dict[str, str]) -> None:
    found = expanded("$SLURM_TMPDIR/x", **environ)
    assert found.returncode != 0
    assert "SLURM_TMPDIR" in found.stderr
    assert found.stdout == ""


def test_a_value_that_begins_with_an_equals_sign_is_quoted() -> None:
    assert shell_value("=mlx5_0:1,mlx5_1:1") == "'=mlx5_0:1,mlx5_1:1'"
    assert shell_value("a=b") == "a=b"
