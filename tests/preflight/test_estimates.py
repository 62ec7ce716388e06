"""jobs.plan: published numbers, and memory against what torch really keeps."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs import plan
from pipeline.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from pipeline.core.errors import UserError
from pipeline.distributed.devices import memory_of
from pipeline.model.losses import loss as loss_of
from pipeline.model.vit import VisionTransformer
from pipeline.preflight import estimates


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    assert plan.main() == 0
    return capsys.readouterr().out


def as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:  # type: ignore[type-arg]
    return json.loads(run(monkeypatch, capsys, *arguments, "--json", "-"))  # type: ignore[no-any-return]


def test_published_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(monkeypatch, capsys, "l16_paper", "--nodes", 4)
    assert found["parameters"] == 326_740_307
    assert found["steps"] == round(90 * 14_197_122 / 4096)
    assert found["published_gmacs"] == pytest.approx(61.6, rel=0.01)
    assert (found["gpus"], found["accumulation"]) == (32, 2)
    assert found["checkpoint_bytes"] == 3 * 4 * 326_740_307
    # 90 epochs of 14.2 million images, 6 FLOPs a MAC, at 40 % of 989 TFLOP/s
    images = found["steps"] * 4096
    assert found["gpu_hours"] == pytest.approx(images * 6e9 * found["forward_gmacs"] / (0.4 * 989e12) / 3600)
    assert found["remedy"] == ""


@pytest.mark.parametrize(("device", "size"), [("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA L40", 48), ("NVIDIA A100", 80)])
def test_memory_by_name(device: str, size: int) -> None:
    assert memory_of(device) == size


def test_a_run_may_be_called_finetune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(monkeypatch, capsys, "b16", "--name", "finetune")["classes"] == 21_843


def test_a_fine_tune_has_its_own_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(monkeypatch, capsys, "b16", "--stage", "finetune")
    assert (found["steps"], found["classes"], found["samples"]) == (20_000, 1000, 1_281_167)
    assert found["parameters"] == 86_859_496
    assert found["checkpoint_bytes"] == 2 * 4 * 86_859_496, "SGD keeps one moment"


def test_a_run_that_does_not_fit_says_what_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    big = ("l16", "--device", "RTX 3090", "--train.micro-batch", 512)
    found = as_json(monkeypatch, capsys, *big)
    flag, value = found["remedy"].split()
    again = as_json(monkeypatch, capsys, *big, flag, value)
    assert again["remedy"] == ""
    assert again["memory_total_bytes"] < 24e9
    assert "does not fit" in run(monkeypatch, capsys, *big)


def test_the_picture_and_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = run(monkeypatch, capsys, "b32", "--plot", tmp_path / "lr.png")
    assert "peak 0.001" in output
    with Image.open(tmp_path / "lr.png") as image:
        assert image.size == (840, 360)
    (line,) = [line for line in output.splitlines() if line.startswith("lr ")]
    assert line[3] == " "
    assert line[-1] == " "
    assert "█" in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("b16", "--device", "Abacus"), "Abacus"),
        (("b16", "--nodes", 3), "train.global_batch 4096"),
        (("b17",), "b17"),
        (("b16", "--train.zero-stage", 0), "zero_stage"),
    ],
)
def test_what_cannot_be_run(monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], part: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    with pytest.raises(UserError) as error:
        plan.main()
    assert part in str(error.value)


def kept_by_torch(config: RunConfig) -> int:
    """Bytes of the distinct storages that autograd saves, weights apart."""
    model = VisionTransformer(config.model, 10)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        size = config.model.image_size
        loss_of("softmax", model(torch.rand(2, 3, size, size)), torch.tensor([1, 2]))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_torch_keeps(checkpointing: bool) -> None:
    config = RunConfig(
        model=ModelConfig("b32", 224, activation_checkpointing=checkpointing),
        train=TrainConfig(micro_batch=2, dtype="float32"),
    )
    measured, estimate = kept_by_torch(config), estimates.activations(config, 10)
    if checkpointing:  # one block at work comes on top, in the backward pass
        assert measured < estimate
    else:
        assert estimate == pytest.approx(measured, rel=0.1)


def test_dropout_keeps_what_it_has_dropped() -> None:
    """A byte a number on a GPU; here, on a CPU, a float32."""
    plain, dropping = (
        RunConfig(model=ModelConfig("tiny", 64, dropout=rate), train=TrainConfig(micro_batch=2, dtype="float32"))
        for rate in (0.0, 0.1)
    )
    masks = (kept_by_torch(dropping) - kept_by_torch(plain)) / 4
    assert masks > 0
    assert estimates.activations(dropping, 10) - estimates.activations(plain, 10) == pytest.approx(masks, rel=0.1)


def test_parts_of_the_memory() -> None:
    def parts(stage: int, **options: object) -> estimates.Memory:
        train = TrainConfig(zero_stage=stage, micro_batch=1, **options)  # type: ignore[arg-type]
        return estimates.memory(RunConfig(model=ModelConfig("b16"), train=train, optim=OptimConfig()), 1000, 8)

    count = 86_567_656
    assert parts(1).parameters == parts(2).parameters == 2 * count
    assert parts(3).parameters == parts(2).gradients == 2 * count / 8
    assert parts(1).moments == 8 * count / 8
    assert parts(0, dtype="float32").moments == 8 * count
    assert parts(2, offload=True).moments == 0
    assert parts(2, offload=True).host == 12 * count / 8
    assert parts(1, average=0.999).moments == 12 * count / 8
