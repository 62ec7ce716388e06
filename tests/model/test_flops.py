"""The published costs of the published models."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.schema import ModelConfig, Variant
from pipeline.distributed.devices import peak_flops
from pipeline.model.flops import forward_macs, train_flops
from pipeline.model.vit import VisionTransformer

# GMACs of a forward pass at 224 and 384 px with 1,000 classes, by timm's table of results
PUBLISHED = [
    ("b16", 17.58, 55.54), ("b32", 4.41, 13.06), ("l16", 61.60, 191.21), ("l32", 15.39, 45.31),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "small", "large"), PUBLISHED)
def test_the_published_tables(variant: Variant, small: float, large: float) -> None:
    for size, gmacs in ((224, small), (384, large)):
        ours = forward_macs(ModelConfig(variant, size), 1000, published=True) / 1e9
        assert ours == pytest.approx(gmacs, rel=0.015)


@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("variant", ["tiny", "b32"])
def test_what_torch_counts(variant: Variant, pre_logits: bool) -> None:
    """torch counts the products as they run: the last block's saving included."""
    config = ModelConfig(variant, 64, pre_logits=pre_logits)
    model = VisionTransformer(config, 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * forward_macs(config, 10)


def test_skipping_the_last_block_saves_what_the_model_says() -> None:
    for variant, saving in (("b16", 0.08), ("l16", 0.04)):
        config = ModelConfig(variant, 224)
        whole = forward_macs(config, 21843, published=True)
        assert 1 - forward_macs(config, 21843) / whole == pytest.approx(saving, abs=0.005)
        assert train_flops(config, 21843) == 6 * forward_macs(config, 21843)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H100 NVL", 835e12),
        ("Abacus", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
