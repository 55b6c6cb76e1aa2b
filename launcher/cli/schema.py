"""``hpc-llm schema``."""

from __future__ import annotations

from typing import Literal

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("schema", cls=AnswerCommand)
@click.argument("kind", type=click.Choice(["job", "site"]))
def command(kind: Literal["job", "site"]) -> Answer:
    """Print the JSON Schema of job or site files, for editors that complete them."""
    import json

    from launcher.spec.schema import json_schema

    schema = json_schema(kind)
    return Answer(data=schema, text=json.dumps(schema, indent=2))
