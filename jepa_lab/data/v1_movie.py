"""What falls on the retina when an eye looks around a photo? A crop that moves with the gaze, 240 times a second.

Book: chapter 15.
"""

from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images
from torch import Tensor

PIXELS_PER_DEGREE = 16.0
Part = Literal["train", "validation", "test"]
PARTS = ("train", "validation", "test")

_FLOOR = 0.03  # of log grey; without it a clear sky shows nothing but the blocks of its JPEG file

# The quarters (photo, row, column) of each part, both photos in each. The one that is mostly sky is for training.
_QUARTERS = {
    "train": ((0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 1, 1)),
    "validation": ((0, 1, 1), (1, 1, 0)),
    "test": ((0, 1, 0), (1, 0, 1)),
}


@cache
def pictures(part: Part) -> Float[Tensor, "P H W"]:
    """Quarters of scikit-learn's two photos, each with its contrast made even.

        x = log(1 + grey),   picture = clip((x - m) / sqrt(s^2 + .03^2), -4, 4)

    with x blurred a little (0.7 px), m and s the local mean and standard deviation (Gaussian windows of 16 and 32 px):
    the eye adapts to light, and without this the dark half of a photo says nothing. All of it within the quarter, so
    that nothing of one part is seen in another.

    Shapes: [P, 213, 320]; P is 4 for train, 2 for validation and for test. All parts are equally large, so that the
    gaze covers the same range in each.
    Raises: ValueError for an unknown part.
    Book: chapter 15.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    photos = [np.log1p(photo.mean(2)) for photo in load_sample_images().images]
    height, width = (n // 2 for n in photos[0].shape)
    found = []
    for photo, row, column in _QUARTERS[part]:
        x = photos[photo][row * height : (row + 1) * height, column * width : (column + 1) * width]
        x = gaussian_filter(x, 0.7, mode="reflect")
        x = x - gaussian_filter(x, 16, mode="reflect")
        spread = np.sqrt(gaussian_filter(x**2, 32, mode="reflect") + _FLOOR**2)
        found.append(np.clip(x / spread, -4, 4))
    return torch.from_numpy(np.stack(found)).float()


def gaze_region(size: int) -> tuple[float, float]:
    """Half width and half height, in degrees, of where the gaze keeps a crop of `size` pixels inside a quarter.

    Raises: ValueError for a crop too large to move.
    Book: chapter 15.
    """
    height, width = pictures("train").shape[1:]
    half = tuple((n - size - 4) / 2 / PIXELS_PER_DEGREE for n in (width, height))
    if min(half) < 1:
        raise ValueError(f"size must leave the gaze a degree either way in {width} x {height} pixels, got {size}")
    return half


def retinal_movie(
    scenes: Float[Tensor, "P H W"], scene: Int[Tensor, " T"], gaze: Float[Tensor, "T 2"], size: int
) -> Float[Tensor, "T size size"]:
    """The crop around the point looked at, frame by frame.

        s_t(x) = I(c + ppd g_t + x),   c the centre of the picture, x right and y down, ppd = 16 pixels a degree

    sampled between pixels by bicubic interpolation: a bilinear one blurs, and the more the further from a pixel. Beyond
    the edge the picture is mirrored. Where the gaze is NaN the eye is shut and the frame is 0, the mean grey.

    Shapes: scenes [P, H, W], scene Int[T] which of them, gaze [T, 2] degrees -> [T, size, size].
    Raises: ValueError for gaze and scene of other lengths.
    Book: chapter 15.
    """
    if len(scene) != len(gaze):
        raise ValueError(f"scene and gaze must be equally long, got {len(scene)} and {len(gaze)} frames")
    height, width = scenes.shape[1:]
    half = torch.tensor([width - 1.0, height - 1.0]) / 2
    offset = torch.arange(size) - (size - 1) / 2
    around = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1)
    shut = gaze.isnan().any(1)
    centre = gaze.masked_fill(shut[:, None], 0) * PIXELS_PER_DEGREE
    movie = torch.empty(len(gaze), size, size)
    for p, picture in enumerate(scenes):
        for frames in (scene == p).nonzero()[:, 0].split(2048):
            grid = (centre[frames, None, None] + around) / half
            one = picture.expand(len(frames), 1, -1, -1)
            movie[frames] = F.grid_sample(one, grid, mode="bicubic", padding_mode="reflection", align_corners=True)[
                :, 0
            ]
    return movie.masked_fill_(shut[:, None, None], 0)
