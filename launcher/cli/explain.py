"""``hpc-llm explain``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("explain", cls=AnswerCommand)
@click.argument("code")
def command(code: str) -> Answer:
    """Explain the error CODE: what it means, why it comes, what to do."""
    import difflib

    from launcher.errors import Problem, SpecError
    from launcher.resources import error_pages

    pages = error_pages()
    if code not in pages:
        close = difflib.get_close_matches(code, pages, n=1)
        hint = (
            f"did you mean {close[0]}?" if close else "see docs/reference/errors.md for all of them"
        )
        raise SpecError(Problem("explain.unknown", f"no error has the code {code!r}", hint=hint))
    return Answer(data={"code": code, "text": pages[code]}, text=f"{code}\n\n{pages[code]}")
