import dataclasses

import pytest
import torch

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.model.initialisation import initialise
from pipeline.model.transfer import resize_pos_embed, transfer
from pipeline.model.vit import VisionTransformer
from tests.helpers.models import random_model


def bilinear_corners(grid: torch.Tensor, size: int) -> torch.Tensor:
    """(G, G, D) -> (size, size, D): corner values stay at the corners, every other value is read off between four."""
    old = grid.shape[0]
    result = torch.empty(size, size, grid.shape[-1], dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            y, x = row * (old - 1) / (size - 1), column * (old - 1) / (size - 1)
            top, left = min(int(y), old - 2), min(int(x), old - 2)
            down, right = y - top, x - left
            result[row, column] = (
                grid[top, left] * (1 - down) * (1 - right)
                + grid[top, left + 1] * (1 - down) * right
                + grid[top + 1, left] * down * (1 - right)
                + grid[top + 1, left + 1] * down * right
            )
    return result


@pytest.mark.parametrize(("old", "new"), [(4, 6), (6, 4), (7, 12), (14, 24)])
def test_position_embedding_is_resized_between_its_corners(old: int, new: int) -> None:
    embedding = torch.randn(1, 1 + old * old, 8, generator=torch.Generator().manual_seed(0))
    resized = resize_pos_embed(embedding, new)
    assert torch.equal(resized[:, 0], embedding[:, 0]), "the class token's entry is kept aside"
    expected = bilinear_corners(embedding[0, 1:].reshape(old, old, 8).double(), new)
    torch.testing.assert_close(resized[0, 1:].reshape(new, new, 8).double(), expected, rtol=0, atol=1e-5)


def test_the_same_grid_keeps_every_bit() -> None:
    embedding = torch.randn(1, 17, 8)
    assert torch.equal(resize_pos_embed(embedding, 4), embedding)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_backbone_comes_over_and_the_head_starts_at_zero(loss: str) -> None:
    parent = random_model(ModelConfig("tiny", 32, pre_logits=True), classes=7)
    child = VisionTransformer(ModelConfig("tiny", 48), 10, loss="softmax" if loss == "softmax" else "sigmoid")
    initialise(child, 1)
    torch.nn.init.ones_(child.head.weight)  # whatever stood there
    torch.nn.init.ones_(child.head.bias)
    transfer(parent.state_dict(), child)
    state, expected = child.state_dict(), parent.state_dict()
    for name in state:
        if name not in ("head.weight", "head.bias", "pos_embed"):
            assert torch.equal(state[name], expected[name]), name
    assert torch.equal(state["pos_embed"], resize_pos_embed(expected["pos_embed"], 6))
    assert (state["head.weight"] == 0).all()
    assert (state["head.bias"] == (0 if loss == "softmax" else -10)).all()


def test_features_at_the_parents_resolution_are_the_parents() -> None:
    parent = random_model(ModelConfig("tiny", 32)).eval()
    child = VisionTransformer(ModelConfig("tiny", 32), 3).eval()
    transfer(parent.state_dict(), child)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(child.features(images), parent.features(images))


def test_a_bfloat16_parent_is_read_as_float32() -> None:
    parent = random_model(ModelConfig("tiny", 32)).bfloat16()
    child = VisionTransformer(ModelConfig("tiny", 48), 3)
    transfer(parent.state_dict(), child)
    assert child.pos_embed.dtype == torch.float32
    assert torch.equal(child.cls_token.data, parent.cls_token.data.float())


def test_errors_name_field_value_and_remedy() -> None:
    parent = random_model(ModelConfig("tiny", 32)).state_dict()
    with torch.device("meta"):
        other = VisionTransformer(ModelConfig("b16"), 10)
    with pytest.raises(UserError, match=r"model.variant b16 .* width 128 instead of 768, .* use recipe tiny"):
        transfer(parent, other)
    with pytest.raises(UserError, match=r"model.pre_logits True .* set model.pre_logits False"):
        transfer(parent, VisionTransformer(ModelConfig("tiny", 32, pre_logits=True), 10))
    with pytest.raises(UserError, match=r"no tensor 'patch_embed.proj.weight'"):
        transfer({"weight": torch.zeros(1)}, VisionTransformer(ModelConfig("tiny", 32), 10))
    nan = {**parent, "cls_token": parent["cls_token"] * torch.nan}
    with pytest.raises(UserError, match=r"tensor 'cls_token' has non-finite values \(1 such"):
        transfer(nan, VisionTransformer(ModelConfig("tiny", 32), 10))
    with pytest.raises(UserError, match=r"choose a parent of b16, b32, .*tiny"):
        transfer(parent | {"patch_embed.proj.weight": torch.zeros(100, 3, 4, 4)}, other)
    with pytest.raises(UserError, match=r"pos_embed has 18 entries, .* square images"):
        transfer(parent | {"pos_embed": torch.zeros(1, 18, 128)}, VisionTransformer(ModelConfig("tiny", 32), 10))
    del parent["blocks.3.norm1.bias"]
    with pytest.raises(UserError, match=r"no tensor 'blocks.3.norm1.bias' \(1 missing\)"):
        transfer(parent, VisionTransformer(ModelConfig("tiny", 32), 10))


@pytest.mark.parametrize("class_position", [True, False])
def test_bicubic_resize_is_bit_for_bit_torch_s_with_corners_not_aligned(class_position: bool) -> None:
    """As facebookresearch/deit resizes: the middle of each cell is read off by the cubic kernel with a = -0.75."""
    first = int(class_position)
    embedding = torch.randn(1, first + 16, 1, generator=torch.Generator().manual_seed(0))
    resized = resize_pos_embed(embedding, 6, "bicubic", class_position=class_position)
    assert torch.equal(resized[:, :first], embedding[:, :first])

    def kernel(t: float) -> float:
        t = abs(t)
        if t < 1:
            return 1.25 * t**3 - 2.25 * t**2 + 1
        return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    weights = torch.zeros(6, 4, dtype=torch.float64)
    for row in range(6):
        centre = (row + 0.5) * 4 / 6 - 0.5
        for source in range(int(centre // 1) - 1, int(centre // 1) + 3):
            weights[row, min(max(source, 0), 3)] += kernel(centre - source)
    expected = weights @ embedding[0, first:, 0].double().reshape(4, 4) @ weights.T
    torch.testing.assert_close(resized[0, first:, 0].double().reshape(6, 6), expected, rtol=0, atol=1e-5)


def test_a_deit3_child_keeps_its_own_random_head() -> None:
    config = ModelConfig("tiny", 32, layer_scale=1e-4, class_position=False, initialisation="deit3")
    parent, child = random_model(config, classes=7), VisionTransformer(dataclasses.replace(config, image_size=48), 10)
    initialise(child, 1)
    head = child.head.weight.clone()
    transfer(parent.state_dict(), child)
    assert torch.equal(child.head.weight, head)
    assert torch.equal(child.blocks[2].ls1.gamma, parent.blocks[2].ls1.gamma)  # type: ignore[union-attr]
