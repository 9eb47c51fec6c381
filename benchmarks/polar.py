"""`python -m benchmarks.polar`: what the parallel forms of Polar-V1 save, and what a training step of each model costs.

Prints, and with `--out FOLDER` writes `speed_polar.json`. A trace, the rotated memory and the rotation alone are raced
against loops over the frames, forward and backward together, at three lengths. Then the six models take whole training
steps, in turns and in one process.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.memory import peak_bytes
from benchmarks.timing import digits, race, ratio, summary
from jepa_lab.experiment import git_revision, write_json
from jepa_lab.polar.dynamics import DynamicsConfig, rotate, rotated_memory, rotated_memory_loop
from jepa_lab.polar.model import PolarV1, PolarV1Config
from jepa_lab.polar.summary import trace, trace_loop

FRAMES = (24, 60, 240)
SIZE = (8, 8, 16)  # movies, pairs, neurons
MODELS = {
    "minimal": {},
    "behavior": {"dynamics": "behavior"},
    "jepa": {"use_jepa": True},
    "behavior_jepa": {"dynamics": "behavior", "use_jepa": True},
    "static": {"summary": "static"},
    "static_jepa": {"summary": "static", "use_jepa": True},
}


def turned(re: Tensor, im: Tensor, advance: Tensor) -> tuple[Tensor, Tensor]:
    """The first frame turned along, at every frame: the angles are added up."""
    return rotate(re[:, :1], im[:, :1], advance.cumsum(1)[..., None])


def turned_loop(re: Tensor, im: Tensor, advance: Tensor) -> tuple[Tensor, Tensor]:
    """The same, frame by frame."""
    frames = [rotate(re[:, 0], im[:, 0], advance[:, 0, :, None])]
    for t in range(1, advance.shape[1]):
        frames.append(rotate(*frames[-1], advance[:, t, :, None]))
    return torch.stack([f[0] for f in frames], 1), torch.stack([f[1] for f in frames], 1)


def forms(frames: int) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Of each computation the parallel form and the loop; a call computes it, and its gradient into the leaves.

    Each call returns the result and the gradients in one row.
    """
    movies, pairs, units = SIZE
    generator = torch.Generator().manual_seed(frames)
    re, im = torch.randn(2, movies, frames, pairs, units, generator=generator).requires_grad_()
    advance = (0.2 * torch.randn(movies, frames, pairs, generator=generator)).requires_grad_()
    q = torch.rand(movies, frames, generator=generator)
    leak = DynamicsConfig().leak(q).requires_grad_()
    alpha = torch.tensor(0.95, requires_grad=True)

    def both(form: Callable, *inputs: Tensor) -> Callable[[], Tensor]:
        def call() -> Tensor:
            out = form(*inputs)
            out = torch.stack(out) if isinstance(out, tuple) else out
            # The mean of squares: gradients are of the size of the outputs, whatever the length.
            gradients = torch.autograd.grad(out.square().mean() * movies, inputs)
            return torch.cat([out.detach().flatten(), *(g.flatten() for g in gradients)])

        return call

    return {
        "trace": (both(trace, re, alpha), both(trace_loop, re, alpha)),
        "rotated memory": (
            both(rotated_memory, re, im, leak, advance),
            both(rotated_memory_loop, re, im, leak, advance),
        ),
        "rotation": (both(turned, re, im, advance), both(turned_loop, re, im, advance)),
    }


def parallel(seconds: float) -> list[dict]:
    """Times of both forms, their ratio, and the largest difference of results and gradients."""
    rows = []
    for frames in FRAMES:
        for name, (fast, slow) in forms(frames).items():
            difference = float((fast() - slow()).abs().max())
            spent = race({"parallel": fast, "loop": slow}, seconds)
            rows.append(
                {
                    "what": name,
                    "frames": frames,
                    "parallel": summary(spent["parallel"]),
                    "loop": summary(spent["loop"]),
                    "difference": digits(difference),
                    **ratio(spent["loop"], spent["parallel"]),
                }
            )
    return rows


def batch(movies: int, frames: int, size: int = 24, units: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "movie": torch.randn(movies, frames, size, size, generator=generator),
        "gaze": 0.02 * torch.randn(movies, frames, 2, generator=generator).cumsum(1),
        "counts": torch.poisson(torch.full((movies, frames, units), 0.08), generator=generator),
        "scored": torch.ones(movies, frames, dtype=torch.bool),
    }


def steps(seconds: float, movies: int = 8, frames: int = 72) -> list[dict]:
    """Milliseconds and peak bytes of a whole training step of each model."""
    data, calls = batch(movies, frames), {}
    for name, settings in MODELS.items():
        torch.manual_seed(0)
        model = PolarV1(dataclasses.replace(PolarV1Config(), **settings)).train()
        optimizer = torch.optim.AdamW(model.param_groups(1e-4), fused=True)

        def step(model: PolarV1 = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            loss = model(data)[0]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.after_step(0.0)

        step()
        calls[name] = step
    memory = {name: peak_bytes(call) for name, call in calls.items()}
    spent = race(calls, seconds)
    return [
        {"model": name, **summary(times), "peak_mb": digits(memory[name] / 2**20), "movies": movies, "frames": frames}
        for name, times in spent.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.polar", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long each race takes")
    parser.add_argument("--out", type=Path, default=None, help="folder of the file; none is written without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"name": "speed_polar", "kind": "speed", "git_revision": git_revision()}
    result |= {"machine": machine.describe("cpu"), "size": dict(zip(("movies", "pairs", "units"), SIZE, strict=True))}
    result["parallel"] = parallel(arguments.seconds)
    for row in result["parallel"]:
        print("{what:16} T = {frames:3} {ratio_median:6.3g} x, equal to {difference:.1g}".format(**row), flush=True)
    result["steps"] = steps(5 * arguments.seconds)
    for row in result["steps"]:
        print("{model:16} {median_ms:6.4g} ms a step, {peak_mb:.0f} MB".format(**row))
    if arguments.out:
        print(write_json(arguments.out / "speed_polar.json", result))


if __name__ == "__main__":
    main()
