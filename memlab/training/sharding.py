"""`trainer=fsdp`: weights, gradients and the optimizer's state are sharded (FSDP2, torch's `fully_shard`).

Each block is gathered from all processes when it is used, and released after use. What stands outside the
blocks (embedding, head, initial memory, gates) is gathered for a whole step. The root is the module's loss,
not the model's `forward`: a step calls the model several times, makes its initial states outside of these
calls, and back-propagates through what one call hands to the next.

What a model carries belongs to the batch rows of each process and is not sharded.

The processes have to gather the same blocks in the same order. So the calls of a step may depend on shapes
but not on the content of batch rows; where documents begin, which decides which segments are read together,
is agreed on (`memlab.training.text`). Validation and test gather all weights once, and each process then
reads at its own pace.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from memlab.config.sections import TrainerConfig
from memlab.training.processes import Processes

FORWARD = ("step_loss", "evaluate")  # the methods of `TrainingModule` within which weights are used


def shard(module: LightningModule, blocks: nn.ModuleList, device: torch.device, size: int) -> None:
    """Shard a module's weights among all processes, in place. Before, they are the same in all processes."""
    # States are often views. torch warns about changing them in place, which nothing here does.
    warnings.filterwarnings(
        "ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning
    )
    mesh = init_device_mesh(device.type, (size,))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for name in FORWARD:
        register_fsdp_forward_method(module, name)


def asked_for(config: TrainerConfig, processes: Processes) -> bool:
    """Whether a training shards its weights."""
    return config.strategy == "fsdp" and processes.size > 1


def shared(module: nn.Module) -> bool:
    """Whether a module's weights are sharded."""
    return isinstance(module, FSDPModule)


def gather(module: nn.Module) -> None:
    """Give every process all weights, until `release`.

    Does nothing to a module that is not sharded.
    """
    if isinstance(module, FSDPModule):
        module.set_reshard_after_forward(False)
        for part in _parts(module):
            part.unshard()


def release(module: nn.Module) -> None:
    """The end of `gather`."""
    if isinstance(module, FSDPModule):
        module.set_reshard_after_forward(True)
        module.set_reshard_after_forward(False, recurse=False)
        for part in _parts(module):
            part.reshard()


def accumulate(module: nn.Module, more: bool) -> None:
    """Choose whether the next backward pass only adds to the gradients, or also reduces and shards them."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not more)


def load_weights(module: nn.Module, saved: Mapping[str, Tensor], strict: bool = True) -> None:
    """`module.load_state_dict` for whole tensors, even if each process only holds a part of each."""
    own = module.state_dict()
    module.load_state_dict(
        {name: _like(own[name], value) if name in own else value for name, value in saved.items()},
        strict=strict,
    )


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _like(own: Any, whole: Any) -> Any:
    """This process's part of a whole tensor, if `own` is a part of a tensor of the same shape."""
    if not isinstance(own, DTensor) or not isinstance(whole, Tensor) or isinstance(whole, DTensor):
        return whole
    if own.shape != whole.shape:
        return whole
    part = distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    copied = part.to_local().clone()  # otherwise the whole tensor would stay in memory
    return DTensor.from_local(
        copied, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
    )


def whole(value: Any) -> Any:
    """The whole tensor, if each process holds a part of it; all processes have to call this.

    Other values are returned as they are.
    """
    return value.full_tensor() if isinstance(value, DTensor) else value


class ShardedStrategy(DDPStrategy):
    """FSDP2 under Lightning, with checkpoints as in one process: whole tensors in one file.

    Lightning's own `ModelParallelStrategy` refuses double precision, reads checkpoints without the
    CheckpointIO, and numbers the optimizer's state differently from torch.
    """

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None and self.lightning_module is not None
        self.accelerator.setup(trainer)
        module: Any = self.lightning_module
        self.precision_plugin.convert_module(module)
        if not isinstance(module, FSDPModule):
            shard(module, module.model.backbone.blocks, self.root_device, self.world_size)
            self.model_to_device()  # already there, block by block; this informs Lightning
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def teardown(self) -> None:
        """Leave the weights where they are: a test may follow, and the host's memory may be too small."""
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors in the host's memory of the first process, and nothing in the others."""
        assert self.lightning_module is not None
        return self._collected(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return {
            **state,
            "state": {number: self._collected(values) for number, values in state["state"].items()},
        }

    def _collected(self, values: Mapping[str, Any]) -> dict[str, Any]:
        collected = {}
        for name, value in values.items():  # one after another, so that a GPU only holds one whole tensor
            tensor = whole(value)
            if self.is_global_zero:
                collected[name] = tensor.cpu() if isinstance(tensor, Tensor) else tensor
        return collected

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read only the parts of the file that this process needs, and only tensors and plain containers."""
        checkpoint: dict[str, Any] = torch.load(
            checkpoint_path, map_location="cpu", weights_only=True, mmap=True
        )
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_weights(self.lightning_module, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            parameters = dict(zip(numbers, own, strict=True))
            state = {
                number: {name: _like(parameters[number], value) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
