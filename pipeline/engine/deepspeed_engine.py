"""The model under training: the parts of an optimizer step, and the full state by parameter name.

The state is saved and loaded independently of ranks and ZeRO stage: for each parameter its full-sized float32 master
value and optimizer moments. DeepSpeed's own checkpoints are bound to the world size and stage, and its universal ones
silently lose the second parameter group under ZeRO-3 (docs/design.md).
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.core.log import ONCE
from pipeline.engine import gradient_norms, internals
from pipeline.engine import optimizer as optim
from pipeline.engine.compiler import compiles
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.engine.internals import DeepSpeedEngine, deepspeed
from pipeline.engine.lamb import Lamb
from pipeline.engine.state_keys import AVERAGE, MASTER, MOMENTS
from pipeline.model.vit import VisionTransformer

logger = logging.getLogger(__name__)


def build_engine(config: RunConfig, model: VisionTransformer, world_size: int) -> "Engine":
    """Build a DeepSpeed engine of ``model`` (float32, the same on each rank) and our optimizer."""
    deepspeed.utils.logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    optimizer = optim.build(config.optim, model)
    wrapped, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, world_size),
        dist_init_required=False,
    )
    if config.train.zero_stage in (1, 2) and not config.train.offload:
        gradient_norms.use_fused_checks(wrapped.optimizer)
    if isinstance(optimizer, Lamb) and config.train.zero_stage > 0:
        optimizer.follow_zero(
            internals.pieces(wrapped), internals.data_parallel_group(wrapped.optimizer), wrapped.device
        )
    if compiles(config.train, wrapped.device):
        logger.info("compiling the model: the first step takes about a minute (--train.compile off: none)", extra=ONCE)
        wrapped.compile()
    return Engine(wrapped, model, config.optim.kind)


class Engine:
    """One rank's DeepSpeed engine. ``module`` is the model; ``kind`` names the optimizer, as optim.kind does."""

    def __init__(self, wrapped: DeepSpeedEngine, module: VisionTransformer, kind: str) -> None:
        self._wrapped = wrapped
        self.module = module
        self.kind = kind
        self.zero_stage: int = wrapped.zero_optimization_stage()

    # One step

    def train(self) -> None:
        if not self.module.training:
            self._wrapped.train()

    def eval(self) -> None:
        self._wrapped.eval()

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Images in the compute dtype -> logits_BC; collective under ZeRO-3."""
        logits_BC: Tensor = self._wrapped(x_BCHW)
        return logits_BC

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's mean loss, divided by the number of micro-batches per step."""
        self._wrapped.backward(loss)

    @property
    def at_boundary(self) -> bool:
        """Whether the current micro-batch is the step's last: :meth:`step` then changes the weights."""
        return bool(self._wrapped.is_gradient_accumulation_boundary())

    def step(self) -> None:
        """End a micro-batch; after the step's last one, clip the gradient and update the weights.

        Under ZeRO a non-finite gradient leaves weights and moments unchanged and counts as a skipped step.
        """
        self._wrapped.step()

    def skip_step(self) -> None:
        """Skip the step at stage 0 as DeepSpeed does under ZeRO: weights and moments stay, and the step is counted."""
        self._wrapped.optimizer.zero_grad()
        internals.count_skipped_step(self._wrapped)

    @property
    def skipped_steps(self) -> int:
        return int(self._wrapped.skipped_steps)

    def grad_norm(self) -> float | None:
        """The global gradient norm before clipping. Call between backward and step at stage 0, after step at 1 to 3."""
        if self.zero_stage == 0:
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            return float(torch.nn.utils.get_total_norm(grads))
        norm = self._wrapped.get_global_grad_norm()
        return None if norm is None else float(norm)

    def set_learning_rate(self, lr: float) -> None:
        """The head's learning rate; the layers below have lower ones with optim.layer_decay."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def uncompiled(self) -> AbstractContextManager[None]:
        """Run the model uncompiled meanwhile: each other batch size would be compiled again."""
        return torch.compiler.set_stance("force_eager") if self._wrapped.is_compiled else nullcontext()

    def destroy(self) -> None:
        """Free DeepSpeed's memory. Call before the process group is destroyed, and then drop the engine."""
        self._wrapped.destroy()

    # The running average of the weights

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Update the running average of this rank's part of the master weights: ``decay`` old + (1 - ``decay``) new.

        It starts as the weights after the first step. No communication; saved and loaded like a moment.
        """
        for parameter in internals.owned_tensors(self._wrapped):
            state = self._optimizer.state.get(parameter, {})  # [parameter] would create an entry
            if AVERAGE in state:
                state[AVERAGE].lerp_(parameter.detach(), 1 - decay)
            elif state:  # a first step has been taken
                state[AVERAGE] = parameter.detach().clone()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Compute with the running average instead of the weights, for evaluation; collective."""
        owned = internals.owned_tensors(self._wrapped)
        masters = [tensor.detach().clone() for tensor in owned] if self._optimizer.state else []
        if masters:
            internals.link_moments(self._wrapped)
            for parameter in self.module.parameters():
                self._set(parameter, self._full(parameter, AVERAGE), None)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, master in zip(owned, masters, strict=bool(masters)):
                    tensor.copy_(master)
                if masters and self.zero_stage > 0:
                    for parameter in self.module.parameters():
                        self._set(parameter, self._full(parameter, None), None)

    # The whole state, by parameter name

    def gather_state(self) -> Iterator[tuple[str, int | None, int, Tensor | None]]:
        """Yield key, holder, number of elements and full float32 tensor of each master parameter and its moments.

        Collective: every rank must iterate to the end, in step with the others. A tensor that one rank holds whole
        stays there, and the other ranks get None; a tensor without holder is gathered on all ranks. Before the first
        optimizer step there are no moments to yield.
        """
        moments = self._moment_names()
        internals.link_moments(self._wrapped)
        holders = self._holders()
        for name, parameter in self.module.named_parameters():
            for key in (None, *moments):
                holder = holders.get(name)
                tensor: Tensor | None = None
                if holder is None:
                    tensor = self._full(parameter, key)
                elif holder == torch.distributed.get_rank():
                    tensor = internals.held(parameter, key)
                yield f"{key or MASTER}/{name}", holder, internals.full_shape(parameter).numel(), tensor

    def optimizer_steps(self) -> int:
        """The optimizer's own step counter (Adam's bias correction), 0 before the first step and for SGD."""
        for state in self._optimizer.state.values():
            return int(state.get("step", 0))
        return 0

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Load what :meth:`gather_state` yielded, under any world size and ZeRO stage. No communication.

        ``state`` is key -> full float32 tensor, read lazily; ``steps`` is the optimizer's counter.
        """
        kinds = {key.partition("/")[0] for key in state}
        moments = tuple(key for key in (*MOMENTS[self.kind], AVERAGE) if key in kinds)
        if moments:
            self._make_optimizer_state(moments, steps)
        else:
            self._optimizer.state.clear()  # saved before the first step, and loaded after some
        device = next(self.module.parameters()).device
        for name, parameter in self.module.named_parameters():
            for key in (None, *moments):
                self._set(parameter, state[f"{key or MASTER}/{name}"].to(device, torch.float32), key)

    def _moment_names(self) -> tuple[str, ...]:
        """Keys of the optimizer's moments; none before the first step."""
        states = list(self._optimizer.state.values())
        if not states:
            return ()
        return (*MOMENTS[self.kind], AVERAGE) if AVERAGE in states[0] else MOMENTS[self.kind]

    def _holders(self) -> dict[str, int]:
        """Under ZeRO 1 and 2: parameter -> the rank that holds it whole; nearly all have one. Collective."""
        if self.zero_stage not in (1, 2):
            return {}
        rank = torch.distributed.get_rank()
        named = list(self.module.named_parameters())
        mine = [rank + 1 if internals.holds_whole(parameter) else 0 for _, parameter in named]
        whole = torch.tensor(mine, device=named[0][1].device)
        torch.distributed.all_reduce(whole)
        return {name: holder - 1 for (name, _), holder in zip(named, whole.tolist(), strict=True) if holder}

    def _make_optimizer_state(self, moments: tuple[str, ...], steps: int) -> None:
        """Allocate what the first optimizer step would, so that it can be loaded into."""
        on_device = self._optimizer.defaults.get("fused") or self._optimizer.defaults.get("capturable")
        for parameter in internals.owned_tensors(self._wrapped):
            state: dict[str, Tensor] = {key: torch.zeros_like(parameter) for key in moments}
            if "exp_avg" in moments:
                state["step"] = torch.tensor(float(steps), device=parameter.device if on_device else "cpu")
            self._optimizer.state[parameter] = state
        internals.link_moments(self._wrapped)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return internals.torch_optimizer(self._wrapped)

    def _full(self, parameter: torch.nn.Parameter, key: str | None) -> Tensor:
        return internals.full_tensor(self._wrapped, parameter, key)

    def _set(self, parameter: torch.nn.Parameter, value: Tensor, key: str | None) -> None:
        internals.set_full_tensor(self._wrapped, parameter, value, key)
