"""Everything that we use of DeepSpeed beyond its documented interface, in small typed functions.

tests/engine/test_internals.py names each of these attributes on real engines of every ZeRO stage: run it first when
DeepSpeed's version range in pyproject.toml is to be raised.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from pipeline.engine.lamb import Pieces

MUON = "deepspeed.runtime.zero.muon.muon_optimizer"

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns if it has to detect this


@contextlib.contextmanager
def _without_mlflow() -> Iterator[None]:
    """Keep DeepSpeed's autotuner, which isn't used here, from importing MLflow.

    That saves 1.3 to 1.6 CPU-seconds per start, and each rank's search for 1,349 modules on a shared disk.
    """
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # "import mlflow" raises ImportError
    try:
        yield
    finally:
        if hidden:
            del sys.modules["mlflow"]


with _without_mlflow():
    import deepspeed as deepspeed  # noqa: PLC0414 - for the users of this module


def _import_muon_uncompiled() -> None:
    """Keep Muon's functions from being compiled on import, which every engine does to check its optimizer's type.

    Compiling imports torch's compiler and its kernel templates, for an optimizer that isn't used here: 1.1 to 1.3
    CPU-seconds per start.
    """

    def as_it_is(function: Any = None, **_: Any) -> Any:
        """Replaces @torch.compile and @torch.compile(...): returns the function unchanged."""
        return as_it_is if function is None else function

    compile_ = torch.compile
    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):  # not every DeepSpeed has Muon there
            importlib.import_module(MUON)
    finally:
        torch.compile = compile_


_import_muon_uncompiled()

DeepSpeedEngine = Any  # deepspeed.DeepSpeedEngine: the package has no types
ZeroOptimizer = Any  # what engine.optimizer is under ZeRO: DeepSpeedZeroOptimizer (1, 2), ..._Stage3
COMPATIBLE_OPS = {"deepspeed_shm_comm": False, "deepspeed_not_implemented": False}  # all entries that are read


def compile_no_operators() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPU ranks. Call before init_distributed.

    Compiling takes half a minute at the first start and fails without a compiler; gloo does the same work. DeepSpeed's
    own table would try the compiler of every such operator, and no other entry is read.
    """
    deepspeed.ops.__compatible_ops__ = COMPATIBLE_OPS


def torch_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's; at stage 0 in float32, the optimizer itself."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def owned_tensors(engine: DeepSpeedEngine) -> list[Tensor]:
    """The float32 tensors that this rank's optimizer updates: flat partitions under ZeRO, parameters without."""
    if engine.zero_optimization_stage() == 3:
        # ZeRO-3 hands torch one flat partition at a time and keeps the groups empty in between
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in torch_optimizer(engine).param_groups for parameter in group["params"]]


def link_moments(engine: DeepSpeedEngine) -> None:
    """Tell ZeRO 1 and 2 where each parameter's moments are.

    DeepSpeed does it only once, after the first parameter group's step, when the second group has no moments yet.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def count_skipped_step(engine: DeepSpeedEngine) -> None:
    """Count a step without taking it, as DeepSpeed does under ZeRO when a gradient is non-finite."""
    engine.micro_steps += 1
    engine.global_steps += 1
    engine.skipped_steps += 1


def data_parallel_group(optimizer: ZeroOptimizer) -> torch.distributed.ProcessGroup:
    group: torch.distributed.ProcessGroup = optimizer.dp_process_group
    return group


# What a parameter is, and where its master value and moments lie


def full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 the parameter itself is empty


def holds_whole(parameter: Any) -> bool:
    """Under ZeRO 1 and 2: whether this rank has all of a parameter's master value and moments."""
    mapping = parameter._hp_mapping  # None: another rank has all of it
    return mapping is not None and mapping.lp_fragment_address.numel == parameter.numel()


def held(parameter: Any, key: str | None) -> Tensor:
    """A master value (``key`` None) or moment that this rank holds whole (:func:`holds_whole`), in full shape."""
    fragment: Tensor = parameter._hp_mapping.get_hp_fragment(key)
    return fragment.detach().view(parameter.shape)


def full_tensor(engine: DeepSpeedEngine, parameter: torch.nn.Parameter, key: str | None) -> Tensor:
    """The whole master value (``key`` None) or moment of a parameter, on every rank; collective under ZeRO."""
    if engine.zero_optimization_stage() == 0:
        return parameter.detach() if key is None else torch_optimizer(engine).state[parameter][key]
    full: Tensor = (
        deepspeed.utils.safe_get_full_fp32_param(parameter)
        if key is None
        else deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
    )
    return full.reshape(full_shape(parameter))


def set_full_tensor(engine: DeepSpeedEngine, parameter: Any, value: Tensor, key: str | None) -> None:
    """Set a parameter and its master value (``key`` None), or a moment, from the whole tensor. No communication."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        local = _local_partition(parameter, value)
        if key is None:
            deepspeed.utils.safe_set_local_fp32_param(parameter, local)
            parameter.ds_tensor.data.copy_(local.reshape(parameter.ds_tensor.shape))
            if parameter.numel() == value.numel():  # small parameters stay whole on each rank between steps
                parameter.data.copy_(value)
        else:
            deepspeed.utils.safe_set_local_optimizer_state(parameter, local, key)
    elif stage == 0:
        target = parameter.data if key is None else torch_optimizer(engine).state[parameter][key]
        target.copy_(value)
    else:
        if key is None:
            parameter.data.copy_(value)  # the forward pass's copy, in the compute type
        parameter.set_full_hp_param(value, key)  # this rank's part of the float32 master or moment


def _local_partition(parameter: Any, value: Tensor) -> Tensor:
    """This rank's equal share of the flattened ``value``, zero-padded at the end as ZeRO-3 does."""
    share = parameter.partition_numel()
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    local = value.new_zeros(share)
    piece = value.flatten()[rank * share : (rank + 1) * share]
    local[: piece.numel()] = piece
    return local


def pieces(engine: DeepSpeedEngine) -> dict[Tensor, Pieces]:
    """Under ZeRO: each flat tensor of this rank's optimizer, and which parts of which parameters it holds."""
    zero = engine.optimizer
    found = {}
    if engine.zero_optimization_stage() == 3:
        for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            held, start = [], 0
            for slot, parameter in enumerate(parameters):  # an equal share of each, zero-padded at its end
                held.append((slot, start, parameter.partition_numel()))
                start += parameter.partition_numel()
            found[flat] = Pieces(len(parameters), tuple(held))
    else:
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            addresses = [
                (slot, parameter._hp_mapping.hp_fragment_address)
                for slot, parameter in enumerate(parameters)
                if parameter._hp_mapping is not None
            ]
            held = [(slot, address.start, address.numel) for slot, address in addresses]
            found[flat] = Pieces(len(parameters), tuple(held))
    return found


# The gradients of ZeRO 1 and 2, between backward and step


def partition_gradients(optimizer: ZeroOptimizer) -> list[Tensor]:
    """This rank's part of the averaged gradients, with padding of zeros; none before a backward pass."""
    return [grad for group in optimizer.averaged_gradients.values() for grad in group or () if grad is not None]


def replace_gradient_checks(
    optimizer: ZeroOptimizer,
    overflow: Callable[[], Tensor],
    norm: Callable[[list[Tensor], list[Tensor]], Tensor],
) -> None:
    """Make the optimizer of ZeRO 1 or 2, without offload, use these functions for non-finite gradients and the norm.

    ``overflow``: bool, one element: whether this rank's part has a non-finite element. ``norm``: of one group's
    gradients on all ranks, from this rank's gradients and parameters of it; -1 if it is non-finite.
    """
    optimizer.has_overflow_partitioned_grads_serial = overflow
    optimizer.get_grad_norm_direct = norm
