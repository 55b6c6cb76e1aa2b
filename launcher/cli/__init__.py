"""The command line. It parses, calls one use case and prints its result; it decides nothing.

Only click is imported here: each command's module is imported when the command runs or is
listed, and what it needs when it works.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

__all__ = ["COMMANDS", "main"]

# In the order of a job's life. The module is named like the command.
COMMANDS = (
    *(
        "plan",
        "render",
        "preview",
        "submit",
        "status",
        "logs",
        "cancel",
        "resume",
        "scale",
        "results",
        "peek",
        "retry-errors",
    ),
    *("list", "site", "doctor", "models", "container", "schema", "config", "explain"),
)
_MODULES: Mapping[str, str] = {"list": "list_runs", "retry-errors": "retry_errors"}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"launcher.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpc-llm")
def main() -> None:
    """Run large language models over a data set on a Slurm cluster, without losing a row.

    Exit codes: 0 done, 2 usage, 3 a file is wrong, 4 cannot run here, 5 template, 6 scheduler,
    7 run failed, 8 outputs incomplete or too many bad rows, 75 stopped early and resumable,
    130 interrupted, 1 a bug.
    """
