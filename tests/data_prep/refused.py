"""What a command prints that must be refused."""

from collections.abc import Callable

import pytest

from pipeline.core import cli

Main = Callable[[list[str]], int]


def refused(capsys: pytest.CaptureFixture[str], main: Main, *arguments: object) -> str:
    """The one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: main([str(argument) for argument in arguments]))
    captured = capsys.readouterr()
    assert caught.value.code == 2, captured
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line
