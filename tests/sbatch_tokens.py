"""How sbatch reads the ``#SBATCH`` lines of a script: a port of the rules, not of the code.

Facts: Slurm, ``src/sbatch/opt.c``, functions ``_opt_batch_script`` and ``get_argument``. Scanning
ends at the first line that is neither blank nor a comment. Within a line, blanks separate words;
a backslash takes the next character as it is, inside quotes of either kind too, but not a blank
outside them; an unquoted ``#`` ends the line, even inside a word; a word that holds nothing ends
it as well.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["UnmatchedQuoteError", "directives", "script_words", "words"]

MAGIC = "#SBATCH"
_BLANKS = " \t\n\v\f\r"  # isspace(3) in the C locale


class UnmatchedQuoteError(ValueError):
    """sbatch ends with "Unmatched quote" here."""


def words(text: str) -> list[str]:
    """The words of one directive, without the ``#SBATCH`` before them."""
    found: list[str] = []
    at = 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(_BLANKS))
        word, at = _word(text, at)
        if not word:
            return found
        found.append(word)


def script_words(script: str) -> list[str]:
    """Every word that sbatch takes from a script, in order."""
    return [word for line in _lines(script) for word in words(line)]


def directives(script: str) -> list[tuple[str, str | None]]:
    """The same as ``(option, value)`` pairs; a bare flag has None."""
    pairs = (word.partition("=") for word in script_words(script))
    return [(option, value if equals else None) for option, equals, value in pairs]


def _lines(script: str) -> Iterator[str]:
    for line in script.split("\n"):
        if line.startswith(MAGIC):
            yield line[len(MAGIC) :]
        elif line.strip(_BLANKS) and not line.lstrip(_BLANKS).startswith("#"):
            return


def _word(text: str, at: int) -> tuple[str, int]:
    """The word that starts at ``at``, and where it ends."""
    word, quote, escaped = "", "", False
    while at < len(text) and text[at] != "\n" and (quote or text[at] not in _BLANKS):
        char = text[at]
        if not escaped and not quote and char == "#":
            break
        at += 1
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            escaped = True
        elif quote:
            word, quote = (word, "") if char == quote else (word + char, quote)
        elif char in "\"'":
            quote = char
        else:
            word += char
    if quote:
        raise UnmatchedQuoteError(f"unmatched {quote} in {text!r}")
    return word, at
