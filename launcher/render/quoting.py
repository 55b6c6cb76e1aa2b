"""How a Python value becomes text in a script. The only place that decides.

Two languages meet in a batch script: shell words, and the options on ``#SBATCH`` lines, which
Slurm reads with a tokeniser of its own. Each has one function here.
"""

from __future__ import annotations

import re
import shlex
from pathlib import PurePath

__all__ = ["Raw", "sbatch_value", "shell_path", "shell_value"]

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:%=,@+")


class Raw(str):
    """Shell text that is right as it is. Making one is a reviewed act."""

    __slots__ = ()


def shell_value(value: object) -> str:
    r"""Quote ``value`` for a word of bash: the ``finalize`` hook of every template.

    Text with control characters becomes ``$'…'`` with escapes, so that a rendered script is
    printable whatever is in it.

    Raises
    ------
    TypeError
        For None, booleans and containers, whose text in a script would be an accident.
    ValueError
        For NUL, which no shell word can hold.
    """
    if isinstance(value, Raw):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | PurePath):
        raise TypeError(f"a {type(value).__name__} has no form in a script: {value!r}")
    text = str(value)
    if "\0" in text:
        raise ValueError("a shell word cannot hold NUL")
    if not text.isprintable():
        return _ansi_c(text)
    quoted = shlex.quote(text)
    # `NAME==value` would read as a comparison, and zsh looks for a program.
    return f"'{text}'" if quoted == text and text.startswith("=") else quoted


_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)


def shell_path(text: str) -> Raw:
    """``text`` as a word of bash in which ``$NAME`` and ``${NAME}`` are expanded, nothing else.

    Where such a variable is unset or empty the script stops and says so: the path would be
    another one.
    """
    pieces = []
    end = 0
    for match in _VARIABLE.finditer(text):
        if match.start() > end:
            pieces.append(shell_value(text[end : match.start()]))
        pieces.append(f'"${{{match[1] or match[2]}:?}}"')
        end = match.end()
    if end < len(text) or not pieces:
        pieces.append(shell_value(text[end:]))
    return Raw("".join(pieces))


def _ansi_c(text: str) -> str:
    r"""``text`` as ``$'…'``; non-printable characters as bytes, which no locale can change."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}
    return "$'" + "".join(escapes.get(c) or _escaped(c) for c in text) + "'"


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def sbatch_value(value: object) -> Raw:
    r"""Quote ``value`` for a ``#SBATCH`` line, whose rules are not the shell's.

    There a backslash escapes even inside single quotes, an unquoted ``#`` ends the line and a
    line break always ends the directive, so `shlex.quote` would be wrong (Slurm,
    ``src/sbatch/opt.c``, ``get_argument``).

    Raises
    ------
    ValueError
        For line breaks and other control characters.
    """
    text = str(value)
    if not text.isprintable():
        raise ValueError(f"a #SBATCH value cannot hold control characters: {text!r}")
    if text and _BARE.issuperset(text):
        return Raw(text)
    return Raw('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
