"""Models with random weights."""

import torch

from pipeline.config.schema import ModelConfig
from pipeline.model.initialisation import initialise
from pipeline.model.vit import VisionTransformer


def random_model(config: ModelConfig, classes: int = 10, seed: int = 0) -> VisionTransformer:
    """Weights that are nowhere zero, as after training."""
    model = VisionTransformer(config, classes)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model
