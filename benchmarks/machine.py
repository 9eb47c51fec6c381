"""The machine that was measured, without its name: its processor, and the roof over everything."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.timing import digits, race


def describe(device: str = "cpu") -> dict:
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: _version(name) for name in ("torch", "lightly")} | {"python": platform.python_version()},
    }


def roof(seconds: float, threads: int, device: str = "cpu") -> dict:
    """GFLOP/s of matrix products, large and of the shape of a token batch, and GB/s of a copy (read and write)."""
    with torch.device(device):
        a, out = torch.randn(1024, 1024), torch.empty(1024, 1024)
        tokens, weight = torch.randn(1024, 64), torch.randn(64, 192)
        source = torch.randn(2**25)
        target = torch.empty_like(source)
    spent = race(
        {
            "large": lambda: torch.mm(a, a, out=out),
            "tokens": lambda: tokens @ weight,
            "copy": lambda: target.copy_(source),
        },
        seconds,
        threads,
        device=device,
    )
    work = {"large": 2 * 1024**3 / 1e6, "tokens": 2 * 1024 * 64 * 192 / 1e6, "copy": 8 * 2**25 / 1e6}
    best = {name: digits(work[name] / min(times)) for name, times in spent.items()}
    return {
        "threads": threads,
        "gflops_1024": best["large"],
        "gflops_tokens": best["tokens"],
        "copy_gb_per_second": best["copy"],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
