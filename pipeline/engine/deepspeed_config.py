"""DeepSpeed's configuration, derived from ours; needs no DeepSpeed."""

from typing import Any

import torch

from pipeline.config.schema import RunConfig, accumulation
from pipeline.core.errors import UserError


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration dict. Raises UserError for combinations that give wrong results."""
    if config.train.zero_stage == 0 and config.train.dtype == "bfloat16":
        raise UserError(
            "train.zero_stage 0 with train.dtype bfloat16 gives wrong results (DeepSpeed 0.19's bf16 optimizer takes a "
            "step on zero gradients at the start): set train.zero_stage to 1, 2 or 3, or train.dtype to float32"
        )
    zero: dict[str, Any] = {"stage": config.train.zero_stage}
    if config.train.offload:
        if config.train.zero_stage == 0:
            raise UserError("train.offload True needs ZeRO, but train.zero_stage is 0: set it to 1, 2 or 3")
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": accumulation(config.train, world_size),
        "gradient_clipping": config.optim.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.train.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,  # torch's own AdamW and SGD
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,  # our own loop reports
    }
