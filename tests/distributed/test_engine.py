"""Real DeepSpeed ranks: state out of one (world size, ZeRO stage) and into another."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint
from tests.ranks import run_ranks

Reference = tuple[str, Path, list[float]]


def train(folder: Path, world: int, stage: int, dtype: str, kind: str, first: int, last: int) -> list[float]:
    """Losses of steps first + 1 to last."""
    arguments = ["-m", "tests.distributed.engine_program", folder, stage, dtype, kind, first, last]
    output = run_ranks(world, arguments, folder / f"logs-{world}-{stage}-{first}").pop(0).output
    losses = [float(value) for value in re.findall(r"loss \d+ (\S+)", output)]
    assert len(losses) == last - first, output
    return losses


def state_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(checkpoint.State(folder / "checkpoints" / checkpoint.folder_name(step)))


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One rank without ZeRO: 6 steps, and a checkpoint after the first 3."""
    folder = tmp_path_factory.mktemp(request.param)
    train(folder, 1, 0, "float32", request.param, 0, 3)
    return request.param, folder, train(folder, 1, 0, "float32", request.param, 0, 6)


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 1), (4, 2), (2, 3)])
def test_any_world_size_and_stage_resumes_a_checkpoint(
    reference: Reference, tmp_path: Path, world: int, stage: int
) -> None:
    kind, folder, losses = reference
    name = checkpoint.folder_name(3)
    shutil.copytree(folder / "checkpoints" / name, tmp_path / "checkpoints" / name)
    resumed = train(tmp_path, world, stage, "float32", kind, 3, 6)
    ours, theirs = state_of(tmp_path, 6), state_of(folder, 6)
    assert ours.keys() == theirs.keys()
    if world == 1:
        assert resumed == losses[3:]
    assert resumed == pytest.approx(losses[3:], abs=1e-5)
    # AdamW divides by the root of near-zero second moments (the key biases' gradients are rounding errors)
    tolerance = 3e-3 if kind == "adamw" else 1e-5
    for key, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[key], rtol=1e-3, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("chain", [[(2, 1), (4, 1), (1, 1)], [(2, 0), (2, 1), (2, 3)]])
def test_world_size_and_stage_change_twice_in_a_run(
    reference: Reference, tmp_path: Path, chain: list[tuple[int, int]]
) -> None:
    """2 -> 4 -> 1 ranks, and ZeRO 0 -> 1 -> 3, two steps each, with a group that decays and one that doesn't."""
    kind, folder, losses = reference
    found: list[float] = []
    for leg, (world, stage) in enumerate(chain):
        found += train(tmp_path, world, stage, "float32", kind, 2 * leg, 2 * leg + 2)
    assert found == pytest.approx(losses, abs=1e-5)
    ours, theirs = state_of(tmp_path, 6), state_of(folder, 6)
    assert ours.keys() == theirs.keys()
    tolerance = 3e-3 if kind == "adamw" else 1e-5
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_resuming_at_the_same_world_size_changes_no_bit(tmp_path: Path, stage: int, dtype: str) -> None:
    first = train(tmp_path, 2, stage, dtype, "adamw", 0, 2) + train(tmp_path, 2, stage, dtype, "adamw", 2, 5)
    state = state_of(tmp_path, 5)
    assert first == train(tmp_path, 2, stage, dtype, "adamw", 0, 5)
    for key, tensor in state_of(tmp_path, 5).items():
        assert torch.equal(tensor, state[key]), key
