"""What stands between the training loop and the devices: nothing on one device in fp32, else accelerate.

The loop of `training.Trainer` is the same for both. With N processes the batch that the loop gets is the *global* one
in every process; process r trains on its rows r, r + N, r + 2N, ..., and the gradients are averaged.

Book: chapter 12.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_lab.recipe import pick_device

Batch = dict[str, Tensor]


def make_engine(precision: str, trackers: tuple[str, ...], device: str, folder: str | Path) -> "SingleDevice":
    """The engine for this precision, these trackers and the number of processes that the launcher has started."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and `accelerate launch`
    if precision == "fp32" and processes == 1 and not trackers:
        return SingleDevice(pick_device(device))
    return Accelerated(precision, trackers, device, folder)


class SingleDevice:
    """One device, fp32: the steps of plain PyTorch."""

    rank, world = 0, 1
    scaler: Any = None

    def __init__(self, device: torch.device):
        self.device = device

    def prepare(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """What the loop calls for the loss, and what it steps."""
        return objective, optimizer

    def share(self, batch: Batch) -> Batch:
        """The rows of the global batch that this process trains on."""
        return batch

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip(self, parameters: list[Tensor], norm: float) -> Tensor:
        """Scale the gradients down to this norm, and return the norm they had."""
        return torch.nn.utils.clip_grad_norm_(parameters, norm)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        return values

    def same(self, value: Any) -> Any:
        """What the first process has, in all processes."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        return [value]

    def start(self, name: str) -> None:
        """Open the trackers."""

    def log(self, values: dict[str, int | float], step: int) -> None:
        """Hand numbers to the trackers."""

    def finish(self) -> None:
        """Close the trackers."""


class Accelerated(SingleDevice):
    """Several processes, mixed precision or trackers, through `accelerate`, which is imported only here.

    Raises: ValueError for fp16 without a GPU, or for a tracker whose package is not installed.
    """

    def __init__(self, precision: str, trackers: tuple[str, ...], device: str, folder: str | Path):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.tracking import get_available_trackers

        missing = sorted(set(trackers) - {str(name) for name in get_available_trackers()})
        if missing:
            raise ValueError(
                f"trainer.trackers: {', '.join(missing)} cannot be used, the package is not installed: "
                f"pip install {' '.join(missing)}"
            )
        # Device and precision are global in accelerate: without this no second training in a process has its own.
        AcceleratorState._reset_state(reset_partial_state=True)
        wanted = pick_device(device)
        self.accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=wanted.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=str(folder),
        )
        super().__init__(self.accelerator.device if self.accelerator.num_processes > 1 else wanted)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.scaler = self.accelerator.scaler
        if precision == "fp16" and self.scaler is None:
            raise ValueError(f"trainer.precision=fp16 needs a GPU, got the device {self.device}; use bf16 or fp32")

    def prepare(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        if self.rank:
            # With equal random numbers all processes would drop the same units. Rank 0 goes on as one process would.
            torch.manual_seed(torch.initial_seed() + self.rank)
        if getattr(objective, "some_without_gradient", False):
            from accelerate import DistributedDataParallelKwargs

            # Without it the processes wait for ever for the gradients of frozen parameters.
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        # accelerate puts the mixed precision into the forward method for good, so it gets one that is thrown away.
        return self.accelerator.prepare(_Loss(objective), optimizer)

    def share(self, batch: Batch) -> Batch:
        if self.world == 1:
            return batch
        rows = {key: len(value) for key, value in batch.items()}
        n = next(iter(rows.values()))
        if set(rows.values()) != {n} or n % self.world:
            raise ValueError(
                f"every tensor of a batch must have the same number of rows, divisible by the {self.world} processes, "
                f"got {rows}"
            )
        return {key: value[self.rank :: self.world] for key, value in batch.items()}

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(self, parameters: list[Tensor], norm: float) -> Tensor:
        return self.accelerator.clip_grad_norm_(parameters, norm)

    def mean(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="mean")

    def same(self, value: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0] if self.world > 1 else value

    def gather(self, value: Any) -> list[Any]:
        from accelerate.utils import gather_object

        return gather_object([value]) if self.world > 1 else [value]

    def start(self, name: str) -> None:
        self.accelerator.init_trackers(name)

    def log(self, values: dict[str, int | float], step: int) -> None:
        self.accelerator.log(values, step=step)

    def finish(self) -> None:
        # Not accelerator.end_training(): it would also end the processes' connection, and a run trains several models.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers.clear()


class _Loss(nn.Module):
    """The objective's forward, and nothing else of it, as a module of its own."""

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(batch)
