"""What if we knew every factor of an image? One coloured shape per picture, from independent factors."""

import math
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross")


def sprites(
    n_train: int = 8000,
    n_validation: int = 1000,
    n_test: int = 2000,
    size: int = 32,
    seed: int = 0,
    rotate: float = 0.3,
    scale: tuple[float, float] = (0.2, 0.35),
    shift: float = 0.15,
    hue: tuple[float, float] = (0.0, 0.8),
    textured: float = 0.5,
) -> dict[str, dict[str, Tensor]]:
    """Draw one coloured shape per image from independent, known factors.

    ``rotate`` is the largest angle (radians), ``scale`` the range of the circumscribed radius and ``shift``
    the largest offset of the centre, both as a share of the side; ``textured`` is the probability of a
    textured background. Hue stops at 0.8 by default because it is a circle: at 0 and 1 the same red would
    carry two values, which no linear read-out fits.

    Shapes: image [n, 3, size, size] in [0, 1]; label [n], the index in ``SHAPES``; hue, scale, rotation, x,
        y, texture [n]. x points right and y down, as a share of the side, 0 in the centre; rotation is
        clockwise, in radians.
    Raises: ValueError if a setting is out of range or a shape could leave the picture.
    Book: chapter 02.
    """
    counts = {"train": n_train, "validation": n_validation, "test": n_test}
    for split, n in counts.items():
        if n < 1:
            raise ValueError(f"n_{split} must be at least 1, got {n}")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    if not 0 <= rotate <= math.pi:
        raise ValueError(f"rotate must lie in [0, pi] radians, got {rotate}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be a range (low, high) with 0 < low <= high, got {scale}")
    if shift < 0 or scale[1] + shift > 0.5 + 1e-9:
        raise ValueError(f"scale[1] + shift must stay within [0, 0.5], else shapes are cut; got {scale[1]} + {shift}")
    if not 0 <= hue[0] <= hue[1] <= 1:
        raise ValueError(f"hue must be a range (low, high) within [0, 1], got {hue}")
    if not 0 <= textured <= 1:
        raise ValueError(f"textured must be a probability in [0, 1], got {textured}")
    data = {}
    for number, (split, n) in enumerate(counts.items()):
        # A generator per split: asking for more training images leaves the test images as they were.
        generator = torch.Generator().manual_seed(3 * seed + number)
        uniform = partial(_uniform, n, generator)
        batch = {
            "label": torch.randint(len(SHAPES), (n,), generator=generator),
            "hue": uniform(*hue),
            "scale": uniform(*scale),
            "rotation": uniform(-rotate, rotate),
            "x": uniform(-shift, shift),
            "y": uniform(-shift, shift),
            "texture": (uniform(0.0, 1.0) < textured).float(),
        }
        waves = torch.rand(n, 2, 3, generator=generator)  # two gratings: direction, frequency, phase
        # In chunks: the distance fields of 24k images at once would need gigabytes.
        rows = torch.arange(n).split(2000)
        image = [_draw({k: v[i] for k, v in batch.items()}, waves[i], size) for i in rows]
        data[split] = {"image": torch.cat(image), **batch}
    return data


def _uniform(n: int, generator: torch.Generator, low: float, high: float) -> Float[Tensor, " n"]:
    return low + (high - low) * torch.rand(n, generator=generator)


def _draw(batch: dict[str, Tensor], waves: Float[Tensor, "B 2 3"], size: int) -> Float[Tensor, "B 3 H W"]:
    """Render sprites: a signed distance per pixel, turned into coverage over one pixel of soft edge."""

    def per_image(value: Tensor) -> Tensor:
        return rearrange(value, "b -> b 1 1")

    axis = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dx, dy = x - per_image(batch["x"]), y - per_image(batch["y"])  # [B, H, W]
    cos, sin = per_image(batch["rotation"].cos()), per_image(batch["rotation"].sin())
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    r = per_image(batch["scale"])

    arm = r / math.hypot(1, 1 / 3)  # the cross: arms three times as long as wide, tips on the circumscribed circle
    bar = torch.maximum(u.abs() - arm, v.abs() - arm / 3)
    crossbar = torch.maximum(v.abs() - arm, u.abs() - arm / 3)
    slanted = u.abs() * (math.sqrt(3) / 2) - v / 2
    distance = torch.stack(
        [
            torch.hypot(u, v) - r,
            torch.maximum(u.abs(), v.abs()) - r / math.sqrt(2),
            torch.maximum(slanted, v) - r / 2,
            torch.minimum(bar, crossbar),
        ]
    )  # [shape, B, H, W], negative inside
    distance = distance[batch["label"], torch.arange(len(r))]
    coverage = rearrange((0.5 - distance * size).clamp(0, 1), "b h w -> b 1 h w")

    direction, frequency, phase = (rearrange(w, "b k -> b k 1 1") for w in waves.unbind(-1))
    along = torch.cos(math.pi * direction) * x + torch.sin(math.pi * direction) * y
    grating = torch.sin(2 * math.pi * ((2 + 4 * frequency) * along + phase)).mean(1)
    background = 0.2 + 0.15 * per_image(batch["texture"]) * grating  # grey and dim, so that only the sprite has a hue
    background = rearrange(background, "b h w -> b 1 h w")

    sector = torch.tensor([5.0, 3.0, 1.0])
    wheel = (rearrange(batch["hue"], "b -> b 1") * 6 + sector) % 6
    colour = 1 - torch.minimum(wheel, 4 - wheel).clamp(0, 1) * 0.85  # HSV with value 1 and saturation 0.85
    colour = rearrange(colour, "b c -> b c 1 1")
    return coverage * colour + (1 - coverage) * background
