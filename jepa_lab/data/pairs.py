"""What persists from one capture to the next? Pairs and movies with a background of which a share `c` stays.

`captures` shows one image twice before a loud, smooth background; `moving_dot` shows a dot that jumps before pixel
noise. In both, `c` is the share of the background's variance that stays: 0 flickers, 1 stands still. One capture alone
looks the same for every `c`, so whatever changes with `c` is about prediction.

Book: chapter 02.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d


def smooth_background(
    n: int, height: int, width: int, blur: float = 3.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n 1 height width"]:
    """White noise behind a Gaussian blur of `blur` pixels, scaled to variance 1 in every pixel.

    Two pixels at distance d have the correlation exp(-d^2 / (4 blur^2)), up to the grid. blur = 0 gives white noise.

    Shapes: -> [n, 1, height, width], mean 0, not limited to [0, 1].
    Raises: ValueError if blur is negative or not finite.
    Book: chapter 02.
    """
    if not (blur >= 0 and math.isfinite(blur)):
        raise ValueError(f"blur must be a number of pixels >= 0, got {blur}")
    reach = math.ceil(3 * blur)
    # The noise is wider than the picture by the reach of the blur: padding with zeros would fade the background
    # towards the border, and a network could read the position off it.
    noise = torch.randn(n, 1, height + 2 * reach, width + 2 * reach, generator=generator)
    if reach == 0:
        return noise
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * blur**2))
    kernel = kernel / kernel.square().sum().sqrt()  # a sum of independent values keeps variance 1
    return conv2d(conv2d(noise, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def captures(
    images: Float[Tensor, "n 1 height width"],
    c: float,
    amplitude: float = 0.5,
    blur: float = 3.0,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "n 1 height width"], Float[Tensor, "n 1 height width"]]:
    """Two captures x and y of each image before a background of which the share `c` of the variance persists.

        x = image + amplitude (sqrt(c) s + sqrt(1 - c) e),   y = image + amplitude (sqrt(c) s + sqrt(1 - c) e')

    with s, e, e' independent smooth backgrounds of variance 1. The two backgrounds have the correlation c in every
    pixel: 0 is a new background each time, 1 a static one.

    Shapes: images [n, 1, height, width] -> two tensors alike, not clipped to [0, 1].
    Raises: ValueError if c is outside [0, 1] or the amplitude is negative.
    Book: chapter 02.
    """
    _check_share(c)
    if not amplitude >= 0:
        raise ValueError(f"amplitude must be >= 0, got {amplitude}")
    n, _, height, width = images.shape
    # All three are drawn whatever c is, so that one seed gives the same backgrounds at every c.
    shared, first, second = smooth_background(3 * n, height, width, blur, generator).to(images).chunk(3)
    stays, drifts = math.sqrt(c), math.sqrt(1 - c)
    return (
        images + amplitude * (stays * shared + drifts * first),
        images + amplitude * (stays * shared + drifts * second),
    )


def moving_dot(
    n: int,
    c: float,
    frames: int = 2,
    size: int = 12,
    noise: float = 0.5,
    jump: float = 3.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Movies of a dot that jumps, before white noise of which the share `c` of the variance stays from frame to frame.

        frame_t = dot(position_t) + noise (sqrt(c) s + sqrt(1 - c) e_t)

    The dot is a Gaussian of height 1 and s.d. 1.2 pixels. It starts anywhere and jumps by up to `jump` pixels along
    each axis, cut off at the border.

    Shapes: `frames` [n, T, size, size]; `position` [n, T, 2] of the centre, row and column, in [0, 1]; `action`
        [n, T - 1, 2], the jumps made (after the cut), in units of `jump`.
    Raises: ValueError if c is outside [0, 1], there are fewer than 2 frames or the jump is not positive.
    Paper: after the moving dots of Sobal et al. 2022. Book: chapter 02.
    """
    _check_share(c)
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}")
    if not jump > 0:
        raise ValueError(f"jump must be a positive number of pixels, got {jump}")
    last = size - 1
    places = [torch.rand(n, 2, generator=generator) * last]
    for _ in range(frames - 1):
        step = (2 * torch.rand(n, 2, generator=generator) - 1) * jump
        places.append((places[-1] + step).clamp(0, last))
    position = torch.stack(places, dim=1)
    profile = torch.exp(-(torch.arange(size) - position[..., None]).square() / (2 * 1.2**2))  # [n, T, 2, size]
    dots = profile[:, :, 0, :, None] * profile[:, :, 1, None, :]
    static, *fresh = torch.randn(frames + 1, n, size, size, generator=generator)
    background = math.sqrt(c) * static[:, None] + math.sqrt(1 - c) * torch.stack(fresh, dim=1)
    return {"frames": dots + noise * background, "position": position / last, "action": position.diff(dim=1) / jump}


def _check_share(c: float) -> None:
    if not 0 <= c <= 1:
        raise ValueError(f"c, the persistent share of the background, must lie in [0, 1], got {c}")
