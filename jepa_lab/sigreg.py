"""SIGReg: does the batch look like a standard Gaussian, from every direction?

Import it from `jepa_lab.losses`.

Book: chapter 07.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lab.fused import Implementation, epps_pulley_of_slices, use_fused

# Values B S of all slices of a view from which implementation="auto" takes the fused form: above the sizes of the
# stored results.
_FUSED_FROM = {"cpu": 2**17}


def sigreg(
    z: Float[Tensor, "*V B D"],
    n_slices: int = 256,
    n_knots: int = 17,
    t_max: float = 3.0,
    generator: torch.Generator | None = None,
    implementation: Implementation = "auto",
) -> Float[Tensor, ""]:
    """Sketched isotropic Gaussian regularisation: the Epps-Pulley statistic of random one-dimensional slices.

        T(y) = B * integral_{-t_max}^{t_max} |mean_b exp(i t y_b) - exp(-t^2/2)|^2 exp(-t^2/2) dt,   y = z u

    averaged over `n_slices` random unit directions u, fresh at every call, and over views, each tested on its own. Two
    distributions are equal when all their slices are (Cramer and Wold). The integral is a trapezoid over `n_knots`
    points of [0, t_max], doubled since the integrand is even.

    A standard Gaussian batch gives 1.0525 at any B and D, a batch collapsed to the origin 0.402 B. The input is never
    standardised: a loss that did so would be blind to a collapse. At the collapsed point itself the gradient is zero,
    so SIGReg can prevent a collapse but not cure one. Computed in at least float32.

    Args:
        generator: draws the directions, on its own device; None uses torch's default one.
        implementation: "dense" is `epps_pulley`, which holds all angles at once; "fused" gives the same value and
            gradient a block of slices at a time, but no second derivative, and loses digits with many knots (1e-6 of
            the value at 17, 1e-4 at 200); "auto" takes "fused" for many values on the
            CPU. (On a GPU the dense form is as fast up to a gigabyte of angles.)
    Shapes: z [B, D], or [V, B, D] -> scalar.
    Raises: ValueError on another number of axes, fewer than 2 rows, sizes that make no sense, or an unknown
        `implementation`.
    Paper: Balestriero and LeCun 2025 (LeJEPA), section 4. Book: chapter 07.
    """
    if z.ndim not in (2, 3) or z.shape[-2] < 2:
        raise ValueError(f"z must be [B, D] or [V, B, D] with at least 2 rows, got shape {tuple(z.shape)}")
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    directions = random_directions(z.shape[-1], n_slices, z, generator)
    if use_fused(implementation, z, z.shape[-2] * n_slices, _FUSED_FROM):
        _, weights = quadrature(n_knots, t_max, z)
        views = z[None] if z.ndim == 2 else z
        step = t_max / (n_knots - 1)
        return torch.stack([epps_pulley_of_slices(view, directions, step, weights) for view in views]).mean()
    y = z @ directions  # [*V, B, S]
    return epps_pulley(y, n_knots, t_max).mean()


def epps_pulley(y: Float[Tensor, "*V B S"], n_knots: int = 17, t_max: float = 3.0) -> Float[Tensor, "*V S"]:
    """The statistic T of `sigreg` for samples of one-dimensional distributions along the axis B.

    Shapes: y [..., B, S] -> [..., S].
    Raises: ValueError for fewer than 2 knots or a `t_max` that is not positive.
    Paper: Epps and Pulley 1983. Book: chapter 07.
    """
    knots, weights = quadrature(n_knots, t_max, y)
    gaussian = torch.exp(-knots.square() / 2)  # the characteristic function of a standard Gaussian: real
    angle = y[..., None] * knots  # [..., B, S, n_knots]
    real, imaginary = angle.cos().mean(-3), angle.sin().mean(-3)
    distance = (real - gaussian).square() + imaginary.square()
    return y.shape[-2] * distance @ weights


def quadrature(n_knots: int, t_max: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Knots in [0, t_max] and their weights for the integral over [-t_max, t_max], window exp(-t^2/2) included."""
    if n_knots < 2 or not t_max > 0:
        raise ValueError(f"n_knots must be at least 2 and t_max positive, got {n_knots} and {t_max}")
    knots = torch.linspace(0, t_max, n_knots, dtype=like.dtype, device=like.device)
    weights = torch.full_like(knots, 2 * t_max / (n_knots - 1))
    weights[[0, -1]] /= 2
    return knots, weights * torch.exp(-knots.square() / 2)


def random_directions(
    dim: int, n_slices: int, like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "D S"]:
    """`n_slices` independent unit vectors, uniform on the sphere, as columns."""
    if n_slices < 1:
        raise ValueError(f"n_slices must be at least 1, got {n_slices}")
    device = generator.device if generator is not None else like.device
    directions = torch.randn(dim, n_slices, generator=generator, device=device, dtype=torch.float32)
    return F.normalize(directions, dim=0).to(like)


def lejepa(
    z_views: Float[Tensor, "V B D"],
    lam: float = 0.05,
    n_slices: int = 256,
    generator: torch.Generator | None = None,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """LeJEPA: all views of a sample at one point, all samples together a Gaussian.

        loss = (1 - lam) mean (z_v - mean_v z_v)^2 + lam SIGReg(z)

    The first mean runs over views, rows and features. One weight, in [0, 1], and neither stop-gradient nor EMA.

    Shapes: z_views [V, B, D] with V >= 2; returns the scalar loss and the detached unweighted `invariance`, `sigreg`.
    Raises: ValueError on other shapes or a `lam` outside [0, 1].
    Paper: Balestriero and LeCun 2025 (LeJEPA), section 5. Book: chapter 07.
    """
    if z_views.ndim != 3 or len(z_views) < 2:
        raise ValueError(f"z_views must be [V, B, D] with at least 2 views, got shape {tuple(z_views.shape)}")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    z = z_views.float() if z_views.dtype in (torch.float16, torch.bfloat16) else z_views
    invariance = (z - z.mean(0)).square().mean()
    gaussian = sigreg(z, n_slices, generator=generator, implementation=implementation)
    loss = (1 - lam) * invariance + lam * gaussian
    return loss, {"invariance": invariance.detach(), "sigreg": gaussian.detach()}
