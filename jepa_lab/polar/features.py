"""What does a picture look like to V1? A Laplacian pyramid, and on each of its bands a bank of quadrature pairs.

A pair answers with a complex number w = A exp(i phase). Its amplitude says how much of the pair's grating there is at a
place, its phase says where the bars lie. A shift of the picture leaves the first and turns the second.

Book: chapter 15.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Binomial, of even length: a coarse pixel lies at the middle of four fine ones, where `F.interpolate` assumes it.
_BLUR = (1 / 32, 5 / 32, 10 / 32, 10 / 32, 5 / 32, 1 / 32)
_TINY = 1e-12
_REACH = 0.5  # how far frequency and width may be learnt away from where they start, in logarithms


class Response(NamedTuple):
    """The complex responses w = re + i im of one level of the pyramid.

    Shapes: maps [B, T, 2, M, H, W], first the real, then the imaginary parts; re, im and amplitude [B, T, M, H, W].
    Book: chapter 15.
    """

    maps: Tensor

    @property
    def re(self) -> Tensor:
        return self.maps[:, :, 0]

    @property
    def im(self) -> Tensor:
        return self.maps[:, :, 1]

    @property
    def amplitude(self) -> Tensor:
        """A = |w|. Its gradient at w = 0 is 0."""
        return _Length.apply(self.maps)

    @property
    def energy(self) -> Tensor:
        """The temporal energy |w_t - w_(t-2)|, from the third frame on [B, T - 2, ...]: how much a response turns or
        grows. Unlike the rest it does not commute with pooling."""
        return _Change.apply(self.maps)


class _Length(torch.autograd.Function):
    """|w|, with gradient 0 at 0. Most of a step's time is the reading and writing of maps: torch's own backward takes
    twice as long, and `vector_norm` over this axis eighty times."""

    @staticmethod
    def forward(ctx, maps: Tensor) -> Tensor:
        length = torch.hypot(*maps.unbind(2))
        ctx.save_for_backward(maps, length)
        return length

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        maps, length = ctx.saved_tensors
        return maps * (grad / length.clamp_min(_TINY)).unsqueeze(2)


class _Change(torch.autograd.Function):
    """|w_t - w_(t-2)|, likewise."""

    @staticmethod
    def forward(ctx, maps: Tensor) -> Tensor:
        change = maps[:, 2:] - maps[:, :-2]
        length = torch.hypot(*change.unbind(2))
        ctx.save_for_backward(change, length)
        ctx.shape = maps.shape
        return length

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        change, length = ctx.saved_tensors
        later = change * (grad / length.clamp_min(_TINY)).unsqueeze(2)
        whole = later.new_zeros(ctx.shape)
        whole[:, 2:] = later
        whole[:, :-2] -= later
        return whole


@dataclass(frozen=True)
class FeatureConfig:
    """Size of pyramid and bank.

    `levels` counts the band levels; the low-pass residual comes on top and carries no filters. `frequency` is that of
    the pairs at the start, cycles a pixel of their level. `filters` are the parametrised pairs (`gabor`), or kernels of
    free weights that start as noise (`noise`), which have no known wave vector.

    Raises: ValueError for a setting out of range.
    Book: chapter 15.
    """

    levels: int = 3
    pairs: int = 4
    size: int = 9
    frequency: float = 0.15
    filters: Literal["gabor", "noise"] = "gabor"

    def __post_init__(self):
        for name in ("levels", "pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"features.{name} must be at least 1, got {getattr(self, name)}")
        if self.size < 3 or self.size % 2 == 0:
            raise ValueError(f"features.size must be odd and at least 3, got {self.size}")
        if not 0 < self.frequency < 0.25:
            raise ValueError(f"features.frequency must lie in (0, 0.25) cycles a pixel, got {self.frequency}")
        if self.filters not in ("gabor", "noise"):
            raise ValueError(f"features.filters must be gabor or noise, got {self.filters!r}")


def laplacian_pyramid(
    frames: Float[Tensor, "N H W"], levels: int = 3
) -> tuple[list[Float[Tensor, "N _ _"]], Float[Tensor, "N _ _"]]:
    """Split pictures into octave bands and what is left.

        band_l = x_l - up(x_(l+1)),   x_(l+1) = blur and halve(x_l),   x_0 = the picture

    Each level has half the pixels a side, rounded up.

    Shapes: frames [N, H, W] -> `levels` bands [N, H / 2^l, W / 2^l], residual [N, H / 2^levels, W / 2^levels].
    Raises: TypeError for frames that are not float; ValueError for pictures too small for so many levels.
    Paper: Burt & Adelson 1983. Book: chapter 15.
    """
    if not frames.is_floating_point():
        raise TypeError(f"frames must be float (grey values around 0), got {frames.dtype}; call .float() on them")
    smallest = min(frames.shape[1:])
    if math.ceil(smallest / 2 ** (levels - 1)) < 4:
        raise ValueError(
            f"frames of {frames.shape[1]} x {frames.shape[2]} pixels are too small for {levels} levels: each halves "
            "the sides, and the last band needs 4 pixels a side"
        )
    bands, x = [], frames
    for _ in range(levels):
        coarse = _halve(x)
        bands.append(x - _double(coarse, x.shape[1:]))
        x = coarse
    return bands, x


def reconstruct(bands: list[Float[Tensor, "N _ _"]], residual: Float[Tensor, "N _ _"]) -> Float[Tensor, "N H W"]:
    """The pictures that a pyramid came from: x_l = band_l + up(x_(l+1)).

    Shapes: as `laplacian_pyramid` returns them -> [N, H, W].
    Book: chapter 15.
    """
    x = residual
    for band in reversed(bands):
        x = band + _double(x, band.shape[1:])
    return x


def _halve(x: Tensor) -> Tensor:
    rows, columns = (_operators(n)[0].to(x) for n in x.shape[1:])
    return rows @ x @ columns.T


def _double(x: Tensor, size: torch.Size) -> Tensor:
    rows, columns = (_operators(n)[1].to(x) for n in size)
    return rows @ x @ columns.T


@lru_cache
def _operators(n: int) -> tuple[Float[Tensor, "h n"], Float[Tensor, "n h"]]:
    """Halving and doubling of n pixels as matrices, h = ceil(n / 2): pictures are small, and on a CPU two products are
    several times faster than padding, convolving and interpolating."""
    pixels = torch.eye(n, dtype=torch.float64)[:, None]
    padded = F.pad(F.pad(pixels, (0, n % 2), mode="replicate"), (2, 2), mode="reflect")
    halve = F.conv1d(padded, padded.new_tensor(_BLUR)[None, None], stride=2)[:, 0].T
    coarse = torch.eye(len(halve), dtype=torch.float64)[:, None]
    double = F.interpolate(coarse, scale_factor=2, mode="linear", align_corners=False)[:, 0, :n].T
    return halve, double


class QuadratureBank(nn.Module):
    """Pairs of an even and an odd filter, the same on all levels.

        even = g(u) (cos 2 pi k.u - c),   odd = g(u) sin 2 pi k.u,   g a Gaussian,   w = even * s - i (odd * s)

    c makes the even filter blind to a constant; then each is scaled to gain 1 at k, since unequal gains would make the
    phase run unevenly. With `*` the cross-correlation that a convolution layer computes, the minus sign lets a
    grating exp(2 pi i k.x) have the phase +2 pi k.x. What is learnt is frequency, orientation and width, so that the
    wave vector k stays known. `noise` filters are free weights.

    Paper: Adelson & Bergen 1985, on quadrature pairs. Book: chapter 15.
    """

    def __init__(self, config: FeatureConfig):
        super().__init__()
        self.config = config
        m, size = config.pairs, config.size
        if config.filters == "noise":
            self.weight = nn.Parameter(torch.randn(2 * m, 1, size, size) / size)
            return
        self.orientation = nn.Parameter(torch.arange(m) * math.pi / m)
        self.log_frequency = nn.Parameter(torch.zeros(m))
        self.log_width = nn.Parameter(torch.zeros(m))
        half = size // 2
        at = torch.arange(-half, half + 1).float()
        y, x = torch.meshgrid(at, at, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], dim=-1), persistent=False)

    def wave_vectors(self) -> Float[Tensor, "M 2"]:
        """k of each pair, (x, y) in cycles a pixel of its level. Raises: ValueError for `noise`, which has none."""
        if self.config.filters == "noise":
            raise ValueError("features.filters=noise have no known wave vector; take gabor filters to rotate phases")
        frequency = self.config.frequency * torch.exp(_REACH * torch.tanh(self.log_frequency))
        return frequency[:, None] * torch.stack([self.orientation.cos(), self.orientation.sin()], dim=1)

    def kernels(self) -> Float[Tensor, "M2 1 K K"]:
        """First the M even, then minus the M odd filters: the real and the imaginary part of w."""
        if self.config.filters == "noise":
            return self.weight
        phase = 2 * math.pi * torch.einsum("yxc,mc->myx", self.grid, self.wave_vectors())
        start = min(0.45 / self.config.frequency, self.config.size / 4.5)
        width = start * torch.exp(_REACH * torch.tanh(self.log_width))
        envelope = torch.exp(-self.grid.square().sum(-1) / (2 * width[:, None, None].square()))
        cos, sin = phase.cos(), phase.sin()
        constant = _total(envelope * cos) / _total(envelope)
        even, odd = envelope * (cos - constant), envelope * sin
        even, odd = even / _total(even * cos), odd / _total(odd * sin)
        return torch.cat([even, -odd])[:, None]  # the minus of w = even - i odd

    def forward(self, bands: list[Float[Tensor, "N _ _"]], batch: int = 1) -> list[Response]:
        """The responses on each band; `batch` says into how many movies the N frames fall.

        Shapes: bands [B T, H, W] -> one Response of [B, T, M, H, W] a band.
        """
        kernels, levels = self.kernels(), []
        for band in bands:
            # Outside of the crop is 0, the mean of a band.
            out = F.conv2d(band[:, None], kernels, padding=self.config.size // 2)
            levels.append(Response(out.view(batch, -1, 2, self.config.pairs, *out.shape[2:])))
        return levels


def _total(kernels: Tensor) -> Tensor:
    return kernels.sum((1, 2), keepdim=True)


class PolarFeatures(nn.Module):
    """From a movie to the complex responses of all levels.

    Shapes: movie [B, T, H, W] -> `levels` Responses of [B, T, M, H / 2^l, W / 2^l].
    Raises: as `laplacian_pyramid`.
    Book: chapter 15.
    """

    def __init__(self, config: FeatureConfig | None = None):
        super().__init__()
        self.config = config or FeatureConfig()
        self.bank = QuadratureBank(self.config)

    def bands(self, movie: Float[Tensor, "B T H W"]) -> list[Float[Tensor, "N _ _"]]:
        """The band levels of every frame, [B T, h, w]: they have no weights, and two banks may share them."""
        return laplacian_pyramid(movie.flatten(0, 1), self.config.levels)[0]

    def forward(self, movie: Float[Tensor, "B T H W"]) -> list[Response]:
        return self.bank(self.bands(movie), len(movie))

    def wave_vectors(self) -> Float[Tensor, "L M 2"]:
        """k of each pair on each level, (x, y) in cycles a pixel of the *movie*: half on each further level."""
        k = self.bank.wave_vectors()
        return torch.stack([k / 2**level for level in range(self.config.levels)])
