"""Real DeepSpeed ranks: the same training on any number of them, and from one (world size, ZeRO stage) to another."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import format as checkpoint
from pipeline.config.schema import ModelConfig
from pipeline.engine.optimizer import layer_scale
from tests.engine.engine_program import DECAY, LR, global_batch, new_model
from tests.helpers.ranks import run_ranks

KINDS = ("adamw", "lamb", "sgd")
STAGES = (0, 1, 2, 3)  # in this order: DeepSpeed's stage 3 puts its own F.linear into a process, for good
TOLERANCE = {"adamw": 1e-4, "lamb": 1e-6, "sgd": 1e-5}  # absolute and relative, of weights and moments after 20 steps
Losses = dict[str, list[float]]  # by name of the run folder, in order of the steps
State = dict[str, torch.Tensor]


def train(folder: Path, world: int, *work: str) -> Losses:
    """Each of NAME:STAGE:DTYPE:OPTIMIZER:FIRST:LAST, one after another on the same ranks."""
    logs = folder / f"logs-{len(list(folder.glob('logs-*')))}"
    output = run_ranks(world, ["-m", "tests.engine.engine_program", folder, *work], logs).pop(0).output
    losses = defaultdict(list)
    for name, value in re.findall(r"^(\S+) loss \d+ (\S+)$", output, re.MULTILINE):
        losses[name].append(float(value))
    return losses


def state_of(run: Path, step: int) -> State:
    return dict(checkpoint.State(run / "checkpoints" / checkpoint.folder_name(step)))


def assert_close(ours: State, theirs: State, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        found, expected = ours[key].chunk(3), tensor.chunk(3)
        if key.endswith("attn.qkv.bias"):
            # A key bias moves all of a query's scores alike: its gradient is 0 but for rounding, which AdamW divides
            # by its own size. Nothing can be said of it but that it stays small.
            assert float(found[1].abs().max()) < 0.1, key
            found, expected = (found[0], found[2]), (expected[0], expected[2])
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    """One rank without ZeRO: 20 steps with each optimizer, and a checkpoint after the first 10."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, train(folder, 1, *(f"{kind}:0:float32:{kind}:0:20" for kind in KINDS))


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.soak)])  # half a minute each
def test_twenty_steps_on_any_ranks_and_stage_and_from_another_ones_checkpoint(
    alone: tuple[Path, Losses], tmp_path: Path, world: int
) -> None:
    """... are those of one rank without ZeRO: losses, weights, moments. A group decays (0.5 % a step), one doesn't."""
    reference, losses = alone
    half = Path("checkpoints", checkpoint.folder_name(10))
    kinds = KINDS if world == 2 else ("lamb",)  # one tells as much, and in a third of the time
    work = []
    for stage in STAGES:
        work += [f"{kind}-{stage}:{stage}:float32:{kind}:0:20" for kind in kinds]
        shutil.copytree(reference / "adamw" / half, tmp_path / f"resumed-{stage}" / half)
        work.append(f"resumed-{stage}:{stage}:float32:adamw:10:20")
    found = train(tmp_path, world, *work)
    for kind in kinds:
        expected = state_of(reference / kind, 20)
        for stage in STAGES:
            assert found[f"{kind}-{stage}"] == pytest.approx(losses[kind], abs=1e-5)
            assert_close(state_of(tmp_path / f"{kind}-{stage}", 20), expected, TOLERANCE[kind])
    for stage in STAGES:
        assert found[f"resumed-{stage}"] == pytest.approx(losses["adamw"][10:], abs=1e-5)
        assert_close(state_of(tmp_path / f"resumed-{stage}", 20), state_of(reference / "adamw", 20), TOLERANCE["adamw"])
    if world == 1:
        assert found["lamb-0"] == losses["lamb"]
        assert found["resumed-0"] == losses["adamw"][10:]


def test_lamb_offloaded_and_from_a_checkpoint_of_other_ranks(alone: tuple[Path, Losses], tmp_path: Path) -> None:
    """Two ranks: trust ratios from the host's memory; ten steps from the checkpoint of one rank without ZeRO."""
    reference, losses = alone
    half = Path("checkpoints", checkpoint.folder_name(10))
    work = []
    for zero in ("0", "1+offload", "2+offload", "3", "3+offload"):
        shutil.copytree(reference / "lamb" / half, tmp_path / zero / half)
        work.append(f"{zero}:{zero}:float32:lamb:10:20")
    found = train(tmp_path, 2, *work)
    assert len(found) == len(work)
    for name, values in found.items():
        assert values == pytest.approx(losses["lamb"][10:], abs=1e-5), name
        assert_close(state_of(tmp_path / name, 20), state_of(reference / "lamb", 20), TOLERANCE["lamb"])


def test_lamb_is_the_plain_one(alone: tuple[Path, Losses]) -> None:
    """Twenty steps of algorithm 2 of arXiv 1904.00962 on whole tensors, with layer decay 0.75 and clipping to 1."""
    reference, losses = alone
    model = new_model(ModelConfig(variant="tiny", image_size=16))
    named = dict(model.named_parameters())
    first, second = ({name: torch.zeros_like(value) for name, value in named.items()} for _ in range(2))
    found = []
    for step in range(20):
        x, y = global_batch(step)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        found.append(loss.item())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for name, value in named.items():
            rate = LR["lamb"] * (1 - step / 100) * layer_scale(name, 6, 0.75)
            decays = value.ndim > 1 and name not in ("cls_token", "pos_embed")
            with torch.no_grad():
                assert value.grad is not None
                first[name] = 0.9 * first[name] + 0.1 * value.grad
                second[name] = 0.999 * second[name] + 0.001 * value.grad**2
                update = first[name] / (1 - 0.9 ** (step + 1))
                update /= (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-6
                if decays:
                    update += DECAY["lamb"] * value
                    update *= value.norm() / update.norm()
                value.sub_(rate * update)
    assert losses["lamb"] == pytest.approx(found, abs=1e-6)
    ours = state_of(reference / "lamb", 20)
    plain = {f"param/{name}": value.detach() for name, value in named.items()}
    plain |= {f"exp_avg/{name}": value for name, value in first.items()}
    plain |= {f"exp_avg_sq/{name}": value for name, value in second.items()}
    assert_close(ours, plain, 1e-6)


@pytest.mark.soak  # 25 s
def test_world_size_and_stage_change_again_and_again_in_a_run(alone: tuple[Path, Losses], tmp_path: Path) -> None:
    """2 -> 4 -> 1 ranks; ZeRO 0 -> 1 -> 3; both at once. Seven steps, seven and six of AdamW's twenty."""
    chains = {
        "ranks": ((2, 1), (4, 1), (1, 1)),
        "ranks3": ((2, 3), (4, 3), (1, 3)),
        "stages": ((2, 0), (2, 1), (2, 3)),
        "both": ((2, 2), (4, 3), (1, 0)),
    }
    reference, losses = alone
    found: dict[str, list[float]] = defaultdict(list)
    for leg, (first, last) in enumerate(((0, 7), (7, 14), (14, 20))):
        for world in (1, 2, 4):
            work = [
                f"{name}:{chain[leg][1]}:float32:adamw:{first}:{last}"
                for name, chain in sorted(chains.items(), key=lambda item: item[1][leg][1])
                if chain[leg][0] == world
            ]
            for name, values in (train(tmp_path, world, *work) if work else {}).items():
                found[name] += values
    for name in chains:
        assert found[name] == pytest.approx(losses["adamw"], abs=1e-5), name
        assert_close(state_of(tmp_path / name, 20), state_of(reference / "adamw", 20), TOLERANCE["adamw"])


def test_resuming_at_the_same_world_size_changes_no_bit(tmp_path: Path) -> None:
    settings = ((0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16"))
    work = []
    for stage, dtype in settings:
        ours, theirs = (f"{part}-{stage}:{stage}:{dtype}:adamw" for part in ("parts", "whole"))
        work += [f"{ours}:0:2", f"{ours}:2:5", f"{theirs}:0:5"]
    losses = train(tmp_path, 2, *work)
    for stage, _ in settings:
        assert losses[f"parts-{stage}"] == losses[f"whole-{stage}"]
        ours, theirs = (state_of(tmp_path / f"{part}-{stage}", 5) for part in ("parts", "whole"))
        for key, tensor in theirs.items():
            assert torch.equal(ours[key], tensor), key
