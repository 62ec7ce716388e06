"""Every attribute of DeepSpeed that we use beyond its documented interface is there (pipeline/engine/internals.py)."""

import re
from pathlib import Path
from types import SimpleNamespace

import pipeline.engine
from tests.engine.internals_program import ATTRIBUTES, missing
from tests.helpers.ranks import run_ranks


def test_each_attribute_is_there_under_each_zero_stage(tmp_path: Path) -> None:
    """Fails with a new release of DeepSpeed: each line of the output says what is gone and which function uses it."""
    for rank, finished in enumerate(run_ranks(2, ("-m", "tests.engine.internals_program"), tmp_path)):
        assert f"rank {rank}: 0 missing" in finished.output, finished.output


def test_what_is_missing_is_named() -> None:
    optimizer = SimpleNamespace(**dict.fromkeys(path for _, name, path, _ in ATTRIBUTES if name == "optimizer"))
    objects = dict.fromkeys({name for _, name, _, _ in ATTRIBUTES}) | {"optimizer": optimizer}
    assert not [line for line in missing(2, objects) if "optimizer (" in line]
    del optimizer.bit16_groups
    assert "ZeRO 2: optimizer (SimpleNamespace) has no bit16_groups, for pieces" in missing(2, objects)


def test_no_other_file_touches_them() -> None:
    """Names that mean something of DeepSpeed alone: what others have too (``optimizer``, ``device``) can't be told."""
    source = Path(pipeline.engine.__file__).parent.parent
    private = {part for _, _, path, _ in ATTRIBUTES for part in path.split(".")}
    private -= {"optimizer", "device", "numel", "start", "skipped_steps"}
    private -= {path for _, _, path, user in ATTRIBUTES if user.startswith("no function")}  # public ones
    private -= {"zero_optimization_stage"}
    found = {
        (path.name, name)
        for path in source.rglob("*.py")
        for name in private
        if path.name != "internals.py" and re.search(rf"\b{name}\b", path.read_text())
    }
    assert not found
