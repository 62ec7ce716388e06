"""Commands that must end with one line about a user's mistake."""

import runpy
import sys

import pytest


def mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, *arguments: object
) -> str:
    """Run ``python -m MODULE ARGUMENTS`` in this process; it must end as a mistake. Returns its one line."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    monkeypatch.delitem(sys.modules, module, raising=False)  # runpy warns of a module that is there already
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__")
    captured = capsys.readouterr()
    assert caught.value.code == 2, captured
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]
