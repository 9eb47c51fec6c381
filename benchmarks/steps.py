"""Whole training steps: images (or pairs of texts) a second of each objective, and where the time of a step goes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import clock_of, digits, race, summary
from jepa_lab.data.augment import Augmentation
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import OBJECTIVES, TwoView, build_objective
from jepa_lab.training import TrainConfig, Trainer

WIDTH, PAIRS_WIDTH = 64, 256
# Kernels by what they do; what is in none of these groups is "other": indexing, sums, additions, bookkeeping.
KERNELS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::addmm_", "aten::baddbmm"),
    "attention": ("scaled_dot_product", "efficient_attention", "flash_attention"),
    "norms and activations": ("layer_norm", "gelu", "batch_norm", "softmax"),
    "optimizer": ("adamw", "AdamW", "linalg_vector_norm", "_foreach_norm", "lerp"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "masked_fill"),
}


def images(n: int, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))


def pairs(n: int) -> dict[str, Tensor]:
    """A batch as the steering objectives want it: random unit vectors, 10 topics, 4 negatives."""
    g = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, PAIRS_WIDTH, generator=g), dim=-1)

    return {
        "question": unit(n),
        "source": unit(n),
        "steering": unit(n),
        "negatives": unit(n, 4),
        "topic": torch.randint(10, (n,), generator=g),
        "source_id": torch.arange(n),
        "negative_id": torch.randint(n, 2 * n, (n, 4), generator=g),
        "steering_variant": torch.randint(4, (n,), generator=g),
    }


def trainer_of(name: str, data: dict[str, Tensor], batch: int, device: str = "cpu") -> Trainer:
    """A trainer that stays at the start of its schedules however often an epoch is asked for."""
    torch.manual_seed(0)
    if "image" in data:
        rest = {"augmentation": Augmentation(crop=(0.6, 1.0))} if issubclass(OBJECTIVES[name], TwoView) else {}
        objective = build_objective(name, image_encoder(data["image"]), **rest)
    else:
        objective = build_objective(name, F.normalize(torch.randn(10, PAIRS_WIDTH), dim=1))
    threads = 0  # those of the race
    config = TrainConfig(epochs=10**6, batch_size=batch, lr=1e-4, threads=threads, device=device)
    return Trainer(objective, data, config)


def objectives(seconds: float, batch: int = 64, device: str = "cpu") -> list[dict]:
    """A row for every objective on images or steered texts: rows a second, and the parts of a step in ms."""
    rows = []
    for name in sorted(name for name, one in OBJECTIVES.items() if one.family in ("images", "text")):
        text = OBJECTIVES[name].family == "text"
        size = 2 * batch if text else batch
        data = pairs(8 * size) if text else {"image": images(8 * size), "label": torch.arange(8 * size) % 10}
        trainer = trainer_of(name, data, size, device)
        spent = race({"step": lambda t=trainer: t.train_epoch(0)}, seconds, device=device)["step"]
        spent = [t / 8 for t in spent]
        row = {"objective": name, "batch": size, "weights": sum(p.numel() for p in trainer._parameters)}
        row |= summary(spent) | {"rows_per_second": digits(1e3 * size / summary(spent)["median_ms"])}
        row["parts_ms"] = parts(trainer, rounds=20 if seconds >= 1 else 5)
        row["kernels"] = kernels(lambda t=trainer: t.train_epoch(0), device)
        rows.append(row)
    return rows


def parts(trainer: Trainer, rounds: int) -> dict[str, float]:
    """Median ms of forward, backward, clipping, optimizer and what follows it (the average)."""
    trainer.train_epoch(0)  # makes the optimizer, and warms up
    objective, batch = trainer.objective.train(), next(iter(trainer.batches(0)))
    clock = clock_of(trainer.device.type)
    found: dict[str, list[float]] = {}
    loss = None

    def timed(name: str, call: Callable):
        start = clock()
        out = call()
        found.setdefault(name, []).append((clock() - start) * 1e3)
        return out

    for _ in range(rounds):
        loss, _ = timed("forward", lambda: objective(batch))
        trainer.optimizer.zero_grad(set_to_none=True)
        timed("backward", loss.backward)
        timed("clip", lambda: torch.nn.utils.clip_grad_norm_(trainer._parameters, 1.0))
        timed("optimizer", trainer.optimizer.step)
        timed("average", lambda: objective.after_step(0.0))
        del loss
    return {name: digits(sorted(times)[rounds // 2]) for name, times in found.items()}


def kernels(call: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """Shares of torch's own time on the device by kind of kernel."""
    call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as record:
        call()
    shares = dict.fromkeys([*KERNELS, "other"], 0.0)
    for event in record.key_averages():
        group = next((g for g, names in KERNELS.items() if any(n in event.key for n in names)), "other")
        if device == "cpu":
            shares[group] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CPU:  # operations, with the time of the kernels that they started
            shares[group] += event.self_device_time_total
    total = sum(shares.values())
    return {name: digits(share / total) for name, share in shares.items()}
