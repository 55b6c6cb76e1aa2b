from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cli_start import COMMANDS, FORBIDDEN, Command, imported, strangers


@pytest.fixture(params=COMMANDS, ids=lambda command: command.arguments[0])
def command(request: pytest.FixtureRequest) -> Command:
    found: Command = request.param
    return found


def test_a_command_imports_few_modules_and_none_of_the_slow_ones(
    command: Command, tmp_path: Path
) -> None:
    modules = imported(command, tmp_path)

    assert "launcher.cli.answer" in modules
    assert strangers(modules, FORBIDDEN) == []
    assert len(modules) <= command.most_modules


def test_a_command_that_fails_is_not_taken_for_a_cheap_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-command"):
        imported(Command(("no-such-command",), 1), tmp_path)
