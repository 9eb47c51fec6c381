"""Which changes should a representation not notice? Crops, rotations, flips and jitter of a whole batch."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """The ranges from which every image of a batch draws its own change; the defaults change nothing.

    ``crop`` is the range of the kept area and ``aspect`` of width / height of the crop (a crop is never
    larger than the picture); ``rotation`` the largest angle in radians; ``shift`` the largest offset as a
    share of the side; ``flip`` the probability of a left-right mirror; brightness and contrast are
    multiplied by a factor within 1 -+ ``brightness``, 1 -+ ``contrast``; ``noise`` is the standard
    deviation of Gaussian pixel noise.

    Raises: ValueError if a range is impossible.
    Paper: Chen et al., A Simple Framework for Contrastive Learning, arXiv:2002.05709, appendix A.
    Book: chapter 04.
    """

    crop: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop must be a range (low, high) with 0 < low <= high <= 1, got {self.crop}")
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(f"aspect must be a range (low, high) with 0 < low <= high, got {self.aspect}")
        for name, high in (
            ("rotation", math.pi),
            ("shift", 1),
            ("flip", 1),
            ("brightness", 1),
            ("contrast", 1),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [0, {high:.4g}], got {getattr(self, name)}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")


DIGITS = Augmentation(crop=(0.6, 1.0), rotation=0.3, brightness=0.3, contrast=0.3)  # no flip: a mirrored 2 is no digit
FASHION = Augmentation(crop=(0.4, 1.0), flip=0.5, brightness=0.4, contrast=0.4)


def augment(
    images: Float[Tensor, "B C H W"],
    augmentation: Augmentation,
    generator: torch.Generator | None = None,
    rows: tuple[Int[Tensor, " B"], int] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Return one randomly changed version of every image, each with its own parameters.

    Geometry is one affine map per image, sampled bilinearly: ``input = R(angle) diag(width, height) output
    + centre``. Then the flip, contrast, brightness, noise, and a clamp to [0, 1].

    Args:
        rows: where these images stand in a larger batch, and its length. They change as they would in there, and the
            generator moves on as far: what each of several processes does with its share of a batch.
    Shapes: images [B, C, H, W] in [0, 1] -> the same; device and dtype of the images.
    Raises: ValueError if the images do not have four axes or the generator is not on the CPU.
    Paper: Chen et al., arXiv:2002.05709, appendix A.
    Book: chapter 04.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have the four axes [B, C, H, W], got shape {tuple(images.shape)}")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator must live on the cpu, so that every device draws alike; got {generator.device}")
    a = augmentation
    if a == Augmentation():
        return images
    # All parameters are drawn whether used or not: switching one change on leaves the draws of the others
    # as they were.
    index, total = (slice(None), len(images)) if rows is None else (rows[0].cpu(), rows[1])
    draws = torch.rand(9, total, generator=generator)[:, index].to(images)
    area, ratio, left, top, angle, right, down, flip, light = draws
    gain = torch.rand(total, generator=generator)[index].to(images)

    out = images
    if a.crop != (1.0, 1.0) or a.aspect != (1.0, 1.0) or a.rotation or a.shift:
        area = a.crop[0] + (a.crop[1] - a.crop[0]) * area
        low, high = math.log(a.aspect[0]), math.log(a.aspect[1])
        ratio = torch.exp(low + (high - low) * ratio)  # uniform in the logarithm: 1/2 and 2 are equally likely
        height, width = images.shape[-2:]
        w = (area * ratio).sqrt().clamp(max=1)
        h = (area / ratio).sqrt().clamp(max=1)
        x = (2 * left - 1) * (1 - w) + (2 * right - 1) * 2 * a.shift
        y = (2 * top - 1) * (1 - h) + (2 * down - 1) * 2 * a.shift
        angle = (2 * angle - 1) * a.rotation
        # The grid is in half sides; off-diagonal terms convert between half a width and half a height.
        theta = torch.stack(
            [
                torch.stack([w * angle.cos(), -h * angle.sin() * (height / width), x], -1),
                torch.stack([w * angle.sin() * (width / height), h * angle.cos(), y], -1),
            ],
            -2,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        # Border padding continues the background, whatever its level. Zeros would paint black wedges on a
        # grey ground, and where they lie gives the angle and the shift away: a shortcut by which two views
        # recognise each other's image.
        out = F.grid_sample(out, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if a.flip:
        # By index, not through the grid: a mirror needs no interpolation, so it stays exact.
        out = torch.where(rearrange(flip < a.flip, "b -> b 1 1 1"), out.flip(-1), out)
    if a.contrast:
        mean = out.mean((1, 2, 3), keepdim=True)
        out = mean + (out - mean) * rearrange(1 + (2 * gain - 1) * a.contrast, "b -> b 1 1 1")
    if a.brightness:
        out = out * rearrange(1 + (2 * light - 1) * a.brightness, "b -> b 1 1 1")
    if a.noise:
        out = out + a.noise * torch.randn(total, *images.shape[1:], generator=generator)[index].to(images)
    return out.clamp(0, 1)
