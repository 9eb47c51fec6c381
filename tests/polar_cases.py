"""What the tests of Polar-V1 look at: gratings, and crops of the photos that scikit-learn ships."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images


def grating(k, shifts, size=96, dtype=torch.float64):
    """cos 2 pi k.(x + shift): one frame a shift, [T, size, size]; k in cycles a pixel."""
    y, x = torch.meshgrid(torch.arange(size, dtype=dtype), torch.arange(size, dtype=dtype), indexing="ij")
    phase = k[0] * x + k[1] * y + (shifts.to(dtype) @ k.to(dtype))[:, None, None]
    return torch.cos(2 * math.pi * phase)


@cache
def photos():
    """Grey, blurred a little, and of the same local contrast everywhere."""
    result = []
    for image in load_sample_images().images:
        grey = gaussian_filter(np.log1p(image.mean(-1)), 0.7)
        grey = grey - gaussian_filter(grey, 16)
        grey = grey / np.sqrt(gaussian_filter(grey**2, 32) + 1e-4)
        result.append(torch.from_numpy(grey.clip(-4, 4)).float())
    return result


def crops(photo, centre, size=96):
    """Crops around centres (x, y) in pixels, [N, size, size], between pixels too."""
    at = torch.arange(size) - (size - 1) / 2
    y, x = centre[:, 1, None, None] + at[None, :, None], centre[:, 0, None, None] + at[None, None, :]
    height, width = photo.shape
    grid = torch.stack(torch.broadcast_tensors((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    picture = photo[None, None].expand(len(centre), -1, -1, -1)
    return F.grid_sample(picture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)[:, 0]


def places(n, seed=0):
    """Points far enough from the edge of a photo for a crop of 96 pixels."""
    generator = torch.Generator().manual_seed(seed)
    return 60 + torch.rand(n, 2, generator=generator) * torch.tensor([640 - 120.0, 427 - 120.0])


def centre(response):
    """The complex responses on the middle half of a level, where no edge reaches."""
    h, w = response.re.shape[-2:]
    z = torch.complex(response.re, response.im)
    return z[..., h // 4 : h - h // 4, w // 4 : w - w // 4].detach()
