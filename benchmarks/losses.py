"""Batch losses, forward and backward: lightly's, the readable form, the fused one, and the matrix products alone."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from benchmarks.timing import race, summary, use_threads
from jepa_lab.fused import choice, pairs, panels
from jepa_lab.fused.choice import block_size
from jepa_lab.losses import info_nce, nt_xent, sigreg, vicreg

SLICES, TEMPERATURE = 256, 0.1
HAVE_LIGHTLY = find_spec("lightly") is not None


def measure(
    loss: str, rows: int, dim: int, seconds: float, threads: int = 1, memory: bool = True, device: str = "cpu"
) -> dict:
    """One row of the table: the race, and with `memory` the peak bytes of each contestant."""
    z = torch.randn(2, rows, dim, generator=torch.Generator().manual_seed(rows + dim))
    z[1] = z[0] + 0.5 * z[1]
    z1, z2 = (x.to(device, copy=True).requires_grad_() for x in z)
    calls = LOSSES[loss](z1, z2)
    with use_threads(threads):
        check(calls, z1, z2)
    both = {name: _backward(call, z1, z2) for name, call in calls.items()}
    with torch.device(device):
        limit = LIMITS[loss](rows, dim)
    times = race(both | {"limit": limit}, seconds, threads, device=device)
    row = {"loss": loss, "rows": rows, "dim": dim, "threads": threads}
    row["times"] = {name: summary(spent) for name, spent in times.items()}
    if memory:
        row["peak_bytes"] = {}
        for name, call in both.items():
            z1.grad = z2.grad = None  # a gradient of the race would be freed inside, and its memory taken off
            row["peak_bytes"][name] = peak_bytes(call, device)
    return row | {"spent": times}


def check(calls: dict[str, Callable[[], Tensor]], z1: Tensor, z2: Tensor) -> None:
    """Refuse to compare what is not equal: the values, and the gradients for both inputs.

    Raises: ValueError naming the one that differs from the readable form.
    """
    found = {}
    for name, call in calls.items():
        value = call()
        grads = torch.autograd.grad(value, (z1, z2), allow_unused=True, materialize_grads=True)
        found[name] = (value.detach(), torch.stack(grads))
    value, grad = found["dense"]
    for name, (other, slope) in found.items():  # not "differs by more", which NaN does not
        equal = (other - value).abs() <= 1e-4 * value.abs() and (slope - grad).norm() <= 1e-3 * grad.norm()
        if not equal:
            raise ValueError(f"{name} gives another value or gradient than dense: they cannot be compared")


def _backward(call: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        call().backward()

    return both


def _nt_xent(z1: Tensor, z2: Tensor) -> dict[str, Callable]:
    calls = {name: lambda how=name: nt_xent(z1, z2, TEMPERATURE, how)[0] for name in ("dense", "fused")}
    if HAVE_LIGHTLY:
        from lightly.loss import NTXentLoss

        theirs = NTXentLoss(TEMPERATURE)
        calls["lightly"] = lambda: theirs(z1, z2)
    return calls


def _info_nce(z1: Tensor, z2: Tensor) -> dict[str, Callable]:
    return {
        name: lambda how=name: info_nce(z1, z2, None, TEMPERATURE, implementation=how)[0] for name in ("dense", "fused")
    }


def _vicreg(z1: Tensor, z2: Tensor) -> dict[str, Callable]:
    calls = {name: lambda how=name: vicreg(z1, z2, implementation=how)[0] for name in ("dense", "fused")}
    if HAVE_LIGHTLY:
        from lightly.loss import VICRegLoss

        theirs = VICRegLoss()
        calls["lightly"] = lambda: theirs(z1, z2)
    return calls


def _sigreg(z1: Tensor, z2: Tensor) -> dict[str, Callable]:
    def drawn():
        return torch.Generator(z1.device).manual_seed(0)

    calls = {
        name: lambda how=name: sigreg(z1, SLICES, generator=drawn(), implementation=how) for name in ("dense", "fused")
    }
    if HAVE_LIGHTLY:
        from lightly.loss.lejepa_loss import SIGReg

        theirs = SIGReg(num_vectors=SLICES).to(z1.device)
        directions = sigreg_directions(z1, drawn())
        theirs._generate_unit_vectors = lambda *_: directions  # the same as ours, to compare gradients
        calls["lightly"] = lambda: theirs(z1)
    return calls


def sigreg_directions(z: Tensor, generator: torch.Generator) -> Tensor:
    from jepa_lab.sigreg import random_directions

    return random_directions(z.shape[1], SLICES, z, generator)


LOSSES = {"nt_xent": _nt_xent, "info_nce": _info_nce, "vicreg": _vicreg, "sigreg": _sigreg}


# ------------------------------------------------------------------------------- what no implementation can avoid


def _pair_products(rows: int, dim: int) -> Callable[[], None]:
    """The products of the fused form, block by block: half of the similarities (twice, where they are not kept), and
    all of the gradient."""
    n = 2 * rows
    a, b = torch.randn(n, dim), torch.randn(n, dim)
    size = min(block_size(pairs.BLOCK, a), n)
    starts = range(0, n, size)
    blocks = [(slice(i, i + size), slice(j, j + size)) for i in starts for j in starts if j >= i]
    again = 1 if n * n <= choice.KEPT else 2
    flat = torch.empty(size * size)

    def products() -> None:
        for rows, columns in blocks:
            left, right = a[rows], a[columns]
            out = flat[: len(left) * len(right)].view(len(left), len(right))
            for _ in range(again):
                torch.mm(left, right.T, out=out)
            b[rows].addmm_(out, right, beta=0)
            if rows != columns:
                b[columns].addmm_(out.T, left, beta=0)

    return products


def _candidate_products(rows: int, dim: int) -> Callable[[], None]:
    q, p = torch.randn(rows, dim), torch.randn(rows, dim)
    dq, dp = torch.empty(rows, dim), torch.empty(rows, dim)
    size = min(block_size(panels.PANEL, q), rows)
    out = torch.empty(size, rows)
    again = 1 if rows * rows <= choice.KEPT else 2

    def products() -> None:
        for i in range(0, rows, size):
            for _ in range(again):
                torch.mm(q[i : i + size], p.T, out=out)
            torch.mm(out, p, out=dq[i : i + size])
            dp.addmm_(out.T, q[i : i + size], beta=0)

    return products


def _moment_products(rows: int, dim: int) -> Callable[[], None]:
    z = torch.randn(rows, dim)
    small, out = torch.empty(min(rows, dim), min(rows, dim)), torch.empty(rows, dim)

    def products() -> None:
        for _ in range(2):  # views
            torch.mm(z, z.T, out=small) if rows < dim else torch.mm(z.T, z, out=small)
            torch.mm(small, z, out=out) if rows < dim else torch.mm(z, small, out=out)

    return products


def _slice_products(rows: int, dim: int) -> Callable[[], None]:
    """The projection and its transpose, one cosine and one sine."""
    z, directions = torch.randn(rows, dim), torch.randn(dim, SLICES)
    y, out, other = torch.empty(rows, SLICES), torch.empty(rows, dim), torch.empty(rows, SLICES)

    def products() -> None:
        torch.mm(z, directions, out=y)
        torch.cos(y, out=other)
        torch.sin(y, out=other)
        torch.mm(other, directions.T, out=out)

    return products


LIMITS = {
    "nt_xent": _pair_products,
    "info_nce": _candidate_products,
    "vicreg": _moment_products,
    "sigreg": _slice_products,
}
