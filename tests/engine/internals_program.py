"""Two ranks: which of DeepSpeed's attributes that pipeline.engine.internals uses are missing, a line each.

python -m tests.engine.internals_program
"""

import os
import sys
from typing import Any

import deepspeed
import torch

from pipeline.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from pipeline.distributed import process_group
from pipeline.distributed.ranks import ranks_from_environment
from pipeline.engine import internals
from pipeline.engine.deepspeed_engine import build_engine
from pipeline.model.vit import VisionTransformer

ALL, ZERO = (0, 1, 2, 3), (1, 2, 3)
ATTRIBUTES = (  # ZeRO stages, object, attribute, the function of pipeline.engine.internals that uses it
    (ALL, "engine", "micro_steps", "count_skipped_step"),
    (ALL, "engine", "global_steps", "count_skipped_step"),
    (ALL, "engine", "skipped_steps", "count_skipped_step"),
    (ALL, "engine", "optimizer", "torch_optimizer"),
    (ALL, "engine", "is_compiled", "no function: Engine.uncompiled"),
    (ALL, "engine", "device", "no function: build_engine"),
    (ALL, "engine", "zero_optimization_stage", "owned_tensors"),
    (ALL, "engine", "get_global_grad_norm", "no function: Engine.grad_norm"),
    (ALL, "engine", "is_gradient_accumulation_boundary", "no function: Engine.at_boundary"),
    (ZERO, "optimizer", "optimizer", "torch_optimizer"),
    (ZERO, "optimizer", "dp_process_group", "data_parallel_group"),
    (ZERO, "deepspeed.utils", "safe_get_full_fp32_param", "full_tensor"),
    (ZERO, "deepspeed.utils", "safe_get_full_optimizer_state", "full_tensor"),
    ((1, 2), "optimizer", "_hp_optimizer_states_linked", "link_moments"),
    ((1, 2), "optimizer", "_lazy_init_hp_params_optimizer_state", "link_moments"),
    ((1, 2), "optimizer", "bit16_groups", "pieces"),
    ((1, 2), "optimizer", "single_partition_of_fp32_groups", "pieces"),
    ((1, 2), "optimizer", "averaged_gradients", "partition_gradients"),
    ((1, 2), "optimizer's class", "has_overflow_partitioned_grads_serial", "replace_gradient_checks"),
    ((1, 2), "optimizer's class", "get_grad_norm_direct", "replace_gradient_checks"),
    ((1, 2), "parameter", "_hp_mapping", "holds_whole"),
    ((1, 2), "parameter", "set_full_hp_param", "set_full_tensor"),
    ((1, 2), "parameter's mapping", "lp_fragment_address.numel", "holds_whole"),
    ((1, 2), "parameter's mapping", "hp_fragment_address.start", "pieces"),
    ((1, 2), "parameter's mapping", "hp_fragment_address.numel", "pieces"),
    ((1, 2), "parameter's mapping", "get_hp_fragment", "held"),
    ((3,), "optimizer", "fp16_groups", "pieces"),
    ((3,), "optimizer", "fp32_partitioned_groups_flat", "owned_tensors"),
    ((3,), "parameter", "ds_shape", "full_shape"),
    ((3,), "parameter", "ds_tensor", "set_full_tensor"),
    ((3,), "parameter", "ds_process_group", "set_full_tensor"),
    ((3,), "parameter", "partition_numel", "set_full_tensor"),
    ((3,), "deepspeed.utils", "safe_set_local_fp32_param", "set_full_tensor"),
    ((3,), "deepspeed.utils", "safe_set_local_optimizer_state", "set_full_tensor"),
)


def missing(stage: int, objects: dict[str, Any]) -> list[str]:
    """A line for each attribute of this stage that its object lacks."""
    lines = []
    for stages, name, path, user in ATTRIBUTES:
        if stage in stages:
            value = objects[name]
            for part in path.split("."):
                if not hasattr(value, part):
                    lines.append(f"ZeRO {stage}: {name} ({type(value).__name__}) has no {part}, for {user}")
                    break
                value = getattr(value, part)
    return lines


class Asked(dict[str, bool]):
    """A table of compatible operators that knows which of them DeepSpeed asked for."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.keys_asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)


def main() -> None:
    ranks = ranks_from_environment(os.environ)
    table = internals.COMPATIBLE_OPS = Asked(internals.COMPATIBLE_OPS)
    device = process_group.start(ranks)
    lines = []
    if device.type == "cpu" and "deepspeed_shm_comm" not in table.keys_asked:
        lines.append("deepspeed.ops.__compatible_ops__ isn't asked for deepspeed_shm_comm, for compile_no_operators")
    if internals.MUON not in sys.modules:
        lines.append(f"{internals.MUON} can't be imported, for _import_muon_uncompiled")
    if "mlflow" in sys.modules:
        lines.append("MLflow has been imported, in spite of _without_mlflow")
    for stage in ALL:
        lines += of_stage(stage, device)
    for line in lines:
        print(f"rank {ranks.rank}: DeepSpeed {deepspeed.__version__}: {line}", flush=True)
    print(f"rank {ranks.rank}: {len(lines)} missing", flush=True)
    process_group.finish()


def of_stage(stage: Any, device: torch.device) -> list[str]:
    """What is missing before and during a step under this ZeRO stage."""
    model = VisionTransformer(ModelConfig(variant="tiny", image_size=16), classes=5)
    dtype: Any = "bfloat16" if stage else "float32"  # in float32, DeepSpeed doesn't check for overflow
    config = RunConfig(
        optim=OptimConfig(kind="adamw", clip=1.0),
        train=TrainConfig(global_batch=2, micro_batch=1, zero_stage=stage, dtype=dtype, compile="off"),
    )
    engine = build_engine(config, model.to(device), 2)
    wrapped = engine._wrapped
    parameters = list(model.parameters())
    mapped = [parameter for parameter in parameters if getattr(parameter, "_hp_mapping", None) is not None]
    lines = missing(
        stage,
        {
            "engine": wrapped,
            "optimizer": wrapped.optimizer,
            "optimizer's class": type(wrapped.optimizer),
            "parameter": parameters[0],
            "parameter's mapping": mapped[0]._hp_mapping if mapped else None,
            "deepspeed.utils": deepspeed.utils,
        },
    )
    if wrapped.module is not engine.module:
        lines.append(f"ZeRO {stage}: engine.module isn't the model itself, for Engine.module")
    before = [wrapped.micro_steps, wrapped.global_steps, wrapped.skipped_steps]
    internals.count_skipped_step(wrapped)
    if [wrapped.micro_steps, wrapped.global_steps, wrapped.skipped_steps] != [value + 1 for value in before]:
        lines.append(f"ZeRO {stage}: the counters of steps can't be set, for count_skipped_step")
    wrapped.micro_steps, wrapped.global_steps, wrapped.skipped_steps = before
    engine.backward(engine(torch.ones(1, 3, 16, 16, device=device, dtype=getattr(torch, dtype))).float().sum())
    if stage in (1, 2) and not lines:
        lines += of_gradients(stage, wrapped.optimizer, [internals.full_shape(p).numel() for p in parameters])
    called = set()
    if stage in (1, 2):
        for name in ("has_overflow_partitioned_grads_serial", "get_grad_norm_direct"):
            ours = getattr(wrapped.optimizer, name)
            setattr(wrapped.optimizer, name, lambda *values, ours=ours, name=name: called.add(name) or ours(*values))
    engine.step()
    if stage in (1, 2) and len(called) < 2:
        lines.append(f"ZeRO {stage}: a step only calls {sorted(called)}, for replace_gradient_checks")
    engine.destroy()
    return lines


def of_gradients(stage: int, optimizer: Any, sizes: list[int]) -> list[str]:
    """All ranks' parts of the gradients are the parameters' elements and the padding of two groups."""
    gradients = internals.partition_gradients(optimizer)
    total = torch.tensor(sum(grad.numel() for grad in gradients), device=gradients[0].device)
    torch.distributed.all_reduce(total, group=internals.data_parallel_group(optimizer))
    if not sum(sizes) <= total <= sum(sizes) + 64:
        return [f"ZeRO {stage}: gradients of {total} elements, parameters of {sum(sizes)}, for partition_gradients"]
    return []


if __name__ == "__main__":
    main()
