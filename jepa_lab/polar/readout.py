"""Where does a neuron look, and at which features? A Gaussian window in space, and a weight for each feature.

Pooling is linear, and so is everything that happens in time with the same coefficients at all places: the two commute.
A model pools each map to the neurons first and then has a number a neuron to filter, where it had a map.

Book: chapter 15.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GaussianReadout(nn.Module):
    """A Gaussian window per neuron and level, and a linear readout of what the windows show.

        mask_lu(x) = exp(-|L_lu^-1 (x - c_lu)|^2 / 2) / sum_x' (the same)
        out_u      = b_u + sum_l sum_c w_lcu sum_x mask_lu(x) map_lc(x)

    with places x = (x, y) in half widths of the level's map, 0 its centre, x right and y down, and L lower triangular:
    the covariance L L' is a full one. The sum over a mask is 1, so that the output does not grow with the map. No
    output non-linearity: softplus belongs to the model.

    Args:
        levels, channels, units: levels of the pyramid, features at each, neurons.
        width: standard deviation of the windows at the start, half widths.
    Raises: ValueError for sizes below 1 or a width that is not positive.
    Paper: Lurz et al. 2021, Generalization in data-driven models of primary visual cortex, section 3 (they sample the
        place in training; here the whole mask is taken). Book: chapter 15.
    """

    def __init__(self, levels: int, channels: int, units: int, width: float = 0.5):
        super().__init__()
        for name, value in {"levels": levels, "channels": channels, "units": units}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not width > 0:
            raise ValueError(f"width must be positive (half widths of the map), got {width}")
        self.centre = nn.Parameter(torch.zeros(levels, units, 2))
        self.log_width = nn.Parameter(torch.full((levels, units, 2), math.log(width)))
        self.shear = nn.Parameter(torch.zeros(levels, units))
        self.weight = nn.Parameter(torch.randn(levels, channels, units) / math.sqrt(levels * channels))
        self.bias = nn.Parameter(torch.zeros(units))

    def covariance(self) -> Float[Tensor, "L U 2 2"]:
        """L L' of each window, squared half widths; its diagonal is that of x and y."""
        factor = self._factor()
        return factor @ factor.mT

    def masks(self, level: int, height: int, width: int) -> Float[Tensor, "U H W"]:
        """The windows on a map of this size; each sums to 1.

        Raises: ValueError for a level that there is not, or a map without pixels.
        """
        if not 0 <= level < len(self.centre):
            raise ValueError(f"level must lie in 0..{len(self.centre) - 1}, got {level}")
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1, got {height} and {width}")
        y, x = (self._places(n) for n in (height, width))
        place = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
        away = place - self.centre[level][:, None]
        scaled = torch.linalg.solve_triangular(self._factor()[level], away.mT, upper=False)
        # A softmax, since a window that has left the map would otherwise be 0 / 0.
        return (-scaled.square().sum(1) / 2).softmax(-1).view(-1, height, width)

    def pool(self, maps: Float[Tensor, "*B H W"], level: int) -> Float[Tensor, "*B U"]:
        """What each neuron's window shows of each map.

        Shapes: maps [..., H, W] -> [..., U].
        """
        masks = self.masks(level, *maps.shape[-2:])
        return maps.flatten(-2) @ masks.flatten(1).T

    def forward(self, pooled: list[Float[Tensor, "B T C U"]]) -> Float[Tensor, "B T U"]:
        """Each neuron's drive, before the output non-linearity.

        Shapes: one [B, T, C, U] a level -> [B, T, U].
        Raises: ValueError for another number of levels, features or neurons.
        """
        levels, channels, units = self.weight.shape
        found = [tuple(p.shape[2:]) for p in pooled]
        if found != [(channels, units)] * levels:
            raise ValueError(f"pooled must be {levels} levels of [B, T, {channels}, {units}], got [C, U] = {found}")
        parts = [torch.einsum("btcu,cu->btu", p, w) for p, w in zip(pooled, self.weight, strict=True)]
        return self.bias + torch.stack(parts).sum(0)

    @torch.no_grad()
    def start_at(self, rate: Float[Tensor, " U"]) -> None:
        """Set the bias so that softplus of it is this rate: without it the first steps only find the mean.

        Raises: ValueError for a rate that is not positive.
        """
        if not (rate > 0).all():
            raise ValueError(f"rate must be positive, got a smallest of {float(rate.min())}")
        self.bias.copy_(torch.log(torch.expm1(rate)))

    def _factor(self) -> Float[Tensor, "L U 2 2"]:
        diagonal = self.log_width.exp()
        lower = F.pad((self.shear * diagonal[..., 1])[..., None, None], (0, 1, 1, 0))
        return torch.diag_embed(diagonal) + lower

    def _places(self, n: int) -> Float[Tensor, " n"]:
        """Centres of n pixels between -1 and 1."""
        return (2 * torch.arange(n, device=self.centre.device, dtype=self.centre.dtype) + 1) / n - 1
