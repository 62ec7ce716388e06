"""A training step (forward, backward, AdamW) of our ViT against timm's and transformers', alternating in one process.

python -m benchmarks.bench_step [--variants b32 b16] [--dtypes float32 bfloat16] [--batch 16] [--rounds 3] [--compile]
Each round times one step of each; the fastest counts, as others may use the machine. The fraction of the speed of
torch's matrix product shows how much could still be gained.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.peers import import_peer
from pipeline.config.schema import ModelConfig, Variant
from pipeline.interop.timm import ENTRY_POINTS
from pipeline.model.cpu import keep_freed_memory
from pipeline.model.flops import forward_macs
from pipeline.model.initialisation import initialise
from pipeline.model.vit import ARCHITECTURES, VisionTransformer

CLASSES = 1000
GEMM = 2048
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["b32"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if DEVICE.type == "cpu":
        keep_freed_memory()  # for all of them, as training does
    for variant in arguments.variants:
        for name in arguments.dtypes:
            measure(variant, getattr(torch, name), arguments.batch, arguments.rounds, compiled=arguments.compile)


def measure(variant: Variant, dtype: torch.dtype, batch: int, rounds: int, *, compiled: bool) -> None:
    steps = {
        name: stepper(model.to(DEVICE, dtype), dtype, batch, compiled=compiled)
        for name, model in contenders(variant).items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # allocations, compilation
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    ours, *_ = fastest = [min(values) for values in seconds.values()]
    product = gemm(dtype)
    config = ModelConfig(variant, 224)
    achieved = 6 * batch * forward_macs(config, CLASSES) / ours
    print(
        f"# {variant} {dtype}: spread of rounds {[[round(s, 3) for s in values] for values in seconds.values()]}; "
        f"ours {achieved / 1e9:.0f} GFLOP/s, {achieved / product:.0%} of torch's own product ({product / 1e9:.0f})"
    )
    for name, peer in zip(list(seconds)[1:], fastest[1:], strict=True):
        report = {
            "claim": f"step of {variant}, batch {batch}, {str(dtype).removeprefix('torch.')}"
            f"{', compiled' if compiled else ''}, against {name}",
            "ours": round(ours, 4),
            "peer": round(peer, 4),
            "limit": 0.9,
            "ratio": round(ours / peer, 4),
            "unit": "seconds",
            "machine": f"{DEVICE.type}, {torch.get_num_threads()} threads",
        }
        print(json.dumps(report), flush=True)


def contenders(variant: Variant) -> dict[str, torch.nn.Module]:
    timm, transformers = import_peer("timm"), import_peer("transformers")
    sizes = ARCHITECTURES[variant]
    ours = VisionTransformer(ModelConfig(variant, 224), CLASSES)
    initialise(ours, 0)
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.mlp,
            patch_size=sizes.patch,
            num_labels=CLASSES,
            hidden_act="gelu_pytorch_tanh",
        )
    )
    return {
        "ours": ours,
        "timm": timm.create_model(ENTRY_POINTS[variant], num_classes=CLASSES, act_layer="gelu_tanh"),
        "transformers": theirs,
    }


def stepper(model: torch.nn.Module, dtype: torch.dtype, batch: int, *, compiled: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(batch, 3, 224, 224, generator=generator).to(DEVICE, dtype)
    labels_B = torch.randint(CLASSES, (batch,), generator=generator).to(DEVICE)
    forward = torch.compile(model) if compiled else model
    model.train()

    def step() -> None:
        logits = forward(x_BCHW)
        logits_BC = logits if isinstance(logits, torch.Tensor) else logits.logits
        F.cross_entropy(logits_BC.float(), labels_B).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], object]) -> float:
    synchronise()
    began = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def gemm(dtype: torch.dtype) -> float:
    """FLOP/s of torch's square matrix product, the best of several."""
    a, b = (torch.randn(GEMM, GEMM, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * GEMM**3 / min(timed(lambda: a @ b) for _ in range(5))


if __name__ == "__main__":
    main()
