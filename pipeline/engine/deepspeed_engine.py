"""DeepSpeed: its configuration from ours, and the engine's whole state by parameter name.

The state that goes in and out here belongs to no rank and no ZeRO stage: for each parameter its float32 master value
and its optimizer moments, full-sized. DeepSpeed's own checkpoints are bound to the world size and stage, and its
universal ones silently lose the second parameter group under ZeRO-3 (docs/design.md).
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from pipeline.config.schema import RunConfig
from pipeline.core.log import ONCE
from pipeline.engine import gradient_norms, lamb
from pipeline.engine import optimizer as optim
from pipeline.engine.compiler import compiles
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.engine.import_deepspeed import deepspeed
from pipeline.engine.state_keys import AVERAGE, MASTER, MOMENTS

logger = logging.getLogger(__name__)


def build_engine(config: RunConfig, model: torch.nn.Module, world_size: int) -> Any:
    """Wrap ``model`` (float32, the same on each rank) in a DeepSpeed engine with our optimizer."""
    # of torch's SGD, with which the papers fine-tune; that the stages agree is tested (tests/distributed)
    deepspeed.utils.logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    optimizer = optim.build(config.optim, model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, world_size),
        dist_init_required=False,
    )
    if config.train.zero_stage in (1, 2) and not config.train.offload:
        gradient_norms.quicken(engine.optimizer)
    if isinstance(optimizer, lamb.Lamb):
        lamb.follow_zero(optimizer, engine)
    if compiles(config.train, next(model.parameters()).device):
        logger.info("compiling the model: the first step takes about a minute (--train.compile off: none)", extra=ONCE)
        engine.compile()
    return engine


def uncompiled(engine: Any) -> AbstractContextManager[None]:
    """Run what was compiled as it stands: batches of other sizes would each be compiled anew."""
    return torch.compiler.set_stance("force_eager") if engine.is_compiled else nullcontext()


def set_learning_rate(engine: Any, lr: float) -> None:
    """The head's learning rate; layers below it have less under optim.layer_decay."""
    for group in _torch_optimizer(engine).param_groups:
        group["lr"] = lr * group["lr_scale"]


def grad_norm(engine: Any) -> float | None:
    """The global gradient norm before clipping. Call between backward and step at stage 0, after step at 1 to 3."""
    if engine.zero_optimization_stage() == 0:
        grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def skip_step(engine: Any) -> None:
    """Leave the step out, at stage 0, as DeepSpeed does under ZeRO: same weights and moments, counted."""
    engine.optimizer.zero_grad()
    engine.micro_steps += 1
    engine.global_steps += 1
    engine.skipped_steps += 1


@torch.no_grad()
def update_average(engine: Any, decay: float) -> None:
    """Move the running average towards this rank's part of the master weights: ``decay`` old, the rest new.

    It starts as the weights after the first step. Without communication; saved and reshaped like a moment.
    """
    optimizer = _torch_optimizer(engine)
    for parameter in _owned(engine):
        state = optimizer.state.get(parameter, {})  # [parameter] would make one
        if AVERAGE in state:
            state[AVERAGE].lerp_(parameter.detach(), 1 - decay)
        elif state:  # a first step has been taken
            state[AVERAGE] = parameter.detach().clone()


@contextmanager
def averaged_weights(engine: Any) -> Iterator[None]:
    """Compute with the running average instead of the weights, for evaluation; collective."""
    masters = [parameter.detach().clone() for parameter in _owned(engine)] if _torch_optimizer(engine).state else []
    if masters:
        _link_moments(engine)
        for parameter in engine.module.parameters():
            _set_full(engine, parameter, _full(engine, parameter, AVERAGE), None)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, master in zip(_owned(engine), masters, strict=bool(masters)):
                parameter.copy_(master)
            if masters and engine.zero_optimization_stage() > 0:
                for parameter in engine.module.parameters():
                    _set_full(engine, parameter, _full(engine, parameter, None), None)


def moment_names(engine: Any, kind: str) -> tuple[str, ...]:
    """What the optimizer keeps for each parameter so far: nothing before the first step."""
    states = list(_torch_optimizer(engine).state.values())
    if not states:
        return ()
    return (*MOMENTS[kind], AVERAGE) if AVERAGE in states[0] else MOMENTS[kind]


def gather_state(engine: Any, kind: str) -> Iterator[tuple[str, int | None, int, torch.Tensor | None]]:
    """Yield key, holder, number of elements and full float32 tensor of each master parameter and its moments.

    Collective: every rank must run it to the end, in step with the others. A tensor that one rank holds whole goes
    nowhere, the others get None in its place; all get one without holder. Moments are left out before the first
    optimizer step, when there are none.
    """
    moments = moment_names(engine, kind)
    _link_moments(engine)
    holders = _holders(engine)
    for name, parameter in engine.module.named_parameters():
        for key in (None, *moments):
            holder = holders.get(name)
            tensor: torch.Tensor | None = None
            if holder is None:
                tensor = _full(engine, parameter, key)
            elif holder == torch.distributed.get_rank():
                tensor = _held(parameter, key)
            yield f"{key or MASTER}/{name}", holder, _full_shape(parameter).numel(), tensor


def _holders(engine: Any) -> dict[str, int]:
    """Under ZeRO 1 and 2: the rank that has all of a parameter, for those (nearly all) that one has; collective."""
    if engine.zero_optimization_stage() not in (1, 2):
        return {}
    rank = torch.distributed.get_rank()
    named = list(engine.module.named_parameters())
    device = named[0][1].device
    whole = torch.tensor(
        [
            rank + 1 if p._hp_mapping is not None and p._hp_mapping.lp_fragment_address.numel == p.numel() else 0
            for _, p in named
        ],
        device=device,
    )
    torch.distributed.all_reduce(whole)
    return {name: holder - 1 for (name, _), holder in zip(named, whole.tolist(), strict=True) if holder}


def _held(parameter: Any, key: str | None) -> torch.Tensor:
    fragment: torch.Tensor = parameter._hp_mapping.get_hp_fragment(key)
    return fragment.detach().view(parameter.shape)


def optimizer_steps(engine: Any) -> int:
    """The optimizer's own step counter (Adam's bias correction), 0 before the first step and for SGD."""
    for state in _torch_optimizer(engine).state.values():
        return int(state.get("step", 0))
    return 0


@torch.no_grad()
def load_state(engine: Any, state: Mapping[str, torch.Tensor], kind: str, steps: int) -> None:
    """Put what :func:`gather_state` yielded back, under any world size and ZeRO stage. No communication.

    ``state`` is key -> full float32 tensor, read when asked for; ``steps`` is the optimizer's counter.
    """
    kinds = {key.partition("/")[0] for key in state}
    moments = tuple(key for key in (*MOMENTS[kind], AVERAGE) if key in kinds)
    if moments:
        _make_optimizer_state(engine, moments, steps)
    else:
        _torch_optimizer(engine).state.clear()  # saved before the first step, and loaded after some
    device = next(engine.module.parameters()).device
    for name, parameter in engine.module.named_parameters():
        for key in (None, *moments):
            value = state[f"{key or MASTER}/{name}"].to(device, torch.float32)
            _set_full(engine, parameter, value, key)


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's, or itself at stage 0 in float32."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _owned(engine: Any) -> list[torch.Tensor]:
    """The float32 tensors that this rank's optimizer updates: flat partitions under ZeRO, parameters without."""
    # ZeRO-3 hands torch one flat partition at a time and keeps the groups empty in between
    flat = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    return flat if flat is not None else [p for group in _torch_optimizer(engine).param_groups for p in group["params"]]


def _make_optimizer_state(engine: Any, moments: tuple[str, ...], steps: int) -> None:
    """Allocate what the first optimizer step would, so that there is something to fill."""
    optimizer = _torch_optimizer(engine)
    for parameter in _owned(engine):
        state: dict[str, torch.Tensor] = {key: torch.zeros_like(parameter) for key in moments}
        if "exp_avg" in moments:
            on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
            state["step"] = torch.tensor(float(steps), device=parameter.device if on_device else "cpu")
        optimizer.state[parameter] = state
    _link_moments(engine)


def _link_moments(engine: Any) -> None:
    """Let ZeRO 1 and 2 know where each parameter's moments are.

    DeepSpeed does it once, after the step of the first parameter group, when the second has no moments yet.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _full(engine: Any, parameter: torch.nn.Parameter, key: str | None) -> torch.Tensor:
    if engine.zero_optimization_stage() == 0:
        return parameter.detach() if key is None else engine.optimizer.state[parameter][key]
    full = (
        deepspeed.utils.safe_get_full_fp32_param(parameter)
        if key is None
        else deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
    )
    return full.reshape(_full_shape(parameter))  # type: ignore[no-any-return]


def _full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty parameter behind


def _set_full(engine: Any, parameter: Any, value: torch.Tensor, key: str | None) -> None:
    stage = engine.zero_optimization_stage()
    if stage == 3:
        local = _local_partition(parameter, value)
        if key is None:
            deepspeed.utils.safe_set_local_fp32_param(parameter, local)
            parameter.ds_tensor.data.copy_(local.reshape(parameter.ds_tensor.shape))
            if parameter.numel() == value.numel():  # small ones stay whole on each rank between steps
                parameter.data.copy_(value)
        else:
            deepspeed.utils.safe_set_local_optimizer_state(parameter, local, key)
    elif stage == 0:
        target = parameter.data if key is None else engine.optimizer.state[parameter][key]
        target.copy_(value)
    else:
        if key is None:
            parameter.data.copy_(value)  # what forward sees, in the compute type
        parameter.set_full_hp_param(value, key)  # this rank's part of the float32 master or moment


def _local_partition(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """This rank's equal share of the flattened ``value``, zero-padded at the end as ZeRO-3 does."""
    share = parameter.partition_numel()
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    local = value.new_zeros(share)
    piece = value.flatten()[rank * share : (rank + 1) * share]
    local[: piece.numel()] = piece
    return local
