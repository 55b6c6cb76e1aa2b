"""Durations and sizes as people write them, and back. One place for both directions.

Durations are whole seconds (``_s``), sizes whole bytes (``_bytes``). ``GB`` is 1000**3 and
``GiB`` 1024**3, as vendors and kernels mean them.
"""

from __future__ import annotations

import re

__all__ = ["format_bytes", "format_duration", "parse_bytes", "parse_duration", "slurm_time"]

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PREFIXES = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
# Twelve digits are more than anyone means, and keep every result finite and exact.
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_CLOCK = re.compile(r"(?:([0-9]{1,12})-)?([0-9]{1,12}):([0-5][0-9]):([0-5][0-9])")
_PARTS = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _SECONDS))
_SIZE = re.compile(rf"({_NUMBER})\s*(?:([kmgtp])(i?))?b", re.IGNORECASE)


def parse_duration(text: str) -> int:
    """Seconds in ``90s``, ``30m``, ``4h``, ``1h30m``, ``2d``, ``12:30:00`` or ``1-12:00:00``.

    Two-part clocks are refused: Slurm reads ``60:30`` as minutes, people as hours.

    Raises
    ------
    ValueError
        The text is none of these.

    >>> parse_duration("1h30m"), parse_duration("1-12:00:00")
    (5400, 129600)
    """
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(g or 0) for g in clock.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = _PARTS.fullmatch(text)
    if not text or parts is None:
        raise ValueError(f"{text!r} is not a duration such as 30m, 4h, 1h30m, 2d or 12:30:00")
    counts = zip(parts.groups("0"), _SECONDS.values(), strict=True)
    return round(sum(float(number) * unit_s for number, unit_s in counts))


def parse_bytes(text: str) -> int:
    """Bytes in ``80GB``, ``1.5TB`` or ``60GiB``.

    Raises
    ------
    ValueError
        The text has no number, or no unit.

    >>> parse_bytes("80GB"), parse_bytes("1GiB")
    (80000000000, 1073741824)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 80GB, 512MB or 60GiB")
    number, prefix, binary = match.groups()
    base = 1024.0 if binary else 1000.0
    return round(float(number) * base ** _PREFIXES.get((prefix or "").lower(), 0))


def slurm_time(seconds: int) -> str:
    """``seconds`` as ``D-HH:MM:SS``, the one form of ``--time`` that cannot be misread.

    >>> slurm_time(14400)
    '0-04:00:00'
    """
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day}-{hour:02}:{minute:02}:{second:02}"


def format_duration(seconds: float) -> str:
    """``seconds`` in two units at most.

    >>> format_duration(5400), format_duration(42.4), format_duration(200000)
    ('1h30m', '42s', '2d7h')
    """
    whole = round(seconds)
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m")]
    units.append((whole % 60, "s"))
    first = next((i for i, (count, _) in enumerate(units) if count), len(units) - 1)
    shown = [f"{count}{unit}" for count, unit in units[first : first + 2] if count]
    return "".join(shown) or "0s"


def format_bytes(count: float) -> str:
    """``count`` with a binary unit and one decimal.

    >>> format_bytes(1536), format_bytes(80 * 1024**3)
    ('1.5 KiB', '80.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(round(count, 1)) < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
