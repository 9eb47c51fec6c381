"""The recipe of a training run: every setting of the loop, its range, and the learning-rate schedule.

Book: chapter 01.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

# Settings that change neither what is learned nor what is recorded of it, but for rounding: a resumed run may have
# others. All other settings must be those of the checkpoint, `epochs` too, since the schedules run over all of them.
HARMLESS = ("threads", "device", "log_every", "checkpoint_every", "keep_last", "trackers")


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: AdamW with linear warm-up, cosine decay and gradient clipping.

    `threads` is the number of CPU threads (0 leaves torch's choice): models this small gain little from a second
    one and lose much when the cores are busy. `log_every` is how many steps of metrics are fetched at once.

    `batch_size` counts the rows of a step over all devices. `precision` is that of the forward pass; weights and
    optimizer stay in fp32. `trackers` are services that accelerate hands the metrics to.

    With a folder for them, a checkpoint is written every `checkpoint_every` epochs (0 = at the end only), and the
    `keep_last` latest are kept. `monitor` names a metric of the evaluation, best when it is `monitor_mode`; its best
    value decides about `best.pt`, about stopping early (after `patience` evaluations without a better one; 0 = never)
    and, with `restore_best`, about the weights that remain at the end.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 50
    clip_norm: float = 1.0
    evaluate_every: int = 0
    log_every: int = 10
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    checkpoint_every: int = 1
    keep_last: int = 2
    monitor: str = ""
    monitor_mode: Literal["max", "min"] = "max"
    patience: int = 0
    restore_best: bool = True

    def __post_init__(self):
        for name in ("epochs", "batch_size", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"trainer.{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "evaluate_every", "threads", "checkpoint_every", "patience"):
            if not getattr(self, name) >= 0:  # NaN is refused too
                raise ValueError(f"trainer.{name} must not be negative, got {getattr(self, name)}")
        for name, allowed in (("precision", ("fp32", "bf16", "fp16")), ("monitor_mode", ("max", "min"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"trainer.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.patience and not (self.monitor and self.evaluate_every):
            raise ValueError(
                f"trainer.patience={self.patience} counts evaluations without a better trainer.monitor: give both "
                f"monitor and evaluate_every, got monitor={self.monitor!r} and evaluate_every={self.evaluate_every}"
            )

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of the monitored metric beats the best one so far; NaN never does."""
        if math.isnan(value):
            return False
        return best is None or (value > best if self.monitor_mode == "max" else value < best)


def lr_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Share of the peak learning rate: linear over the first `warmup_steps`, times half a cosine over the whole run."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def pick_device(name: str = "auto") -> torch.device:
    """The device to train on: a CUDA GPU if there is one, else Apple's, else the CPU; or the one named."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
