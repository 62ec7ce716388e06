"""Pixels as the model takes them: normalised, in its compute type."""

import torch

from pipeline.config.schema import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # compute types by their name as an option
_HALVES = ModelConfig()


def normalise(images_BHWC: torch.Tensor, dtype: torch.dtype, model: ModelConfig = _HALVES) -> torch.Tensor:
    """uint8 images -> x_BCHW on the images' device: (x - 255 mean) / (255 std), per channel.

    ``model``: the configuration with mean and std; by default 0.5, which is (x - 127.5) / 127.5, from -1 to 1.
    """
    mean_C, std_C = (
        torch.tensor([255.0 * value for value in values], device=images_BHWC.device)
        for values in (model.mean, model.std)
    )
    return ((images_BHWC.to(torch.float32) - mean_C) / std_C).to(dtype).permute(0, 3, 1, 2).contiguous()
