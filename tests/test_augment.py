"""Augmentations: what each setting does to a picture, and that the generator alone decides."""

import math

import pytest
import torch
from torch import Tensor

from jepa_lab.data.augment import DIGITS, FASHION, Augmentation, augment
from jepa_lab.data.images import digits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch() -> Tensor:
    return digits()["train"]["image"][:64]


@pytest.fixture(scope="module")
def ramp() -> Tensor:
    """32 equal pictures whose two channels are the coordinates of each pixel, in shares of the side."""
    axis = (torch.arange(20) + 0.5) / 20
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y]).expand(32, 2, 20, 20).contiguous()


def test_identity_returns_the_images_and_draws_nothing(batch):
    generator = seeded()
    before = generator.get_state()
    assert augment(batch, Augmentation(), generator) is batch
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("preset", [DIGITS, FASHION, Augmentation(noise=0.1), Augmentation(shift=0.2)])
def test_the_generator_decides(batch, preset):
    once = augment(batch, preset, seeded(1))
    assert torch.equal(once, augment(batch, preset, seeded(1)))
    assert not torch.equal(once, augment(batch, preset, seeded(2)))
    assert once.min() >= 0
    assert once.max() <= 1
    assert once.shape == batch.shape


def test_without_a_generator_the_global_one_is_used(batch):
    torch.manual_seed(3)
    once = augment(batch, DIGITS)
    torch.manual_seed(3)
    assert torch.equal(once, augment(batch, DIGITS))


@pytest.mark.parametrize(
    "change",
    [
        {"crop": (0.5, 0.9)}, {"aspect": (0.5, 2.0)}, {"rotation": 0.5}, {"shift": 0.2},
        {"brightness": 0.5}, {"contrast": 0.5}, {"noise": 0.1},
    ],
)  # fmt: skip
def test_every_image_draws_its_own_parameters(batch, change):
    same = batch[:1].expand(16, -1, -1, -1)
    views = augment(same, Augmentation(**change), seeded())
    assert len({view.numpy().tobytes() for view in views}) == 16


def test_flip_mirrors_exactly_and_about_half_of_them(batch):
    assert torch.equal(augment(batch, Augmentation(flip=1.0), seeded()), batch.flip(-1))
    views = augment(batch, Augmentation(flip=0.5), seeded())
    flipped = torch.tensor([torch.equal(v, x.flip(-1)) for v, x in zip(views, batch, strict=True)])
    kept = torch.tensor([torch.equal(v, x) for v, x in zip(views, batch, strict=True)])
    assert (flipped | kept).all()
    assert 20 <= flipped.sum() <= 44


def window(views: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of what a view shows, from the slope of the coordinates it shows."""
    # Away from the rim, where half a pixel is padding and the coordinates stand still.
    x, y = views[:, 0, 10, 3:-3], views[:, 1, 3:-3, 10]
    return (x[:, -1] - x[:, 0]) * 20 / 13, (y[:, -1] - y[:, 0]) * 20 / 13


def test_crop_keeps_the_area_asked_for_and_stays_inside(ramp):
    views = augment(ramp, Augmentation(crop=(0.3, 0.5)), seeded())
    width, height = window(views)
    area = width * height
    torch.testing.assert_close(width, height, atol=1e-4, rtol=0)
    assert 0.3 <= area.min() < 0.34
    assert 0.46 < area.max() <= 0.5
    # A crop inside the picture shows no padding: the coordinates rise at an even pace, but for half a pixel
    # at the rim.
    step = views[:, 0, :, 2:-2].diff(dim=-1)
    torch.testing.assert_close(step, (width / 20)[:, None, None].expand_as(step), atol=1e-4, rtol=0)
    assert views[:, 0, 0, 0].std() > 0.05  # and the crops lie in different places


def test_aspect_is_width_over_height(ramp):
    width, height = window(augment(ramp, Augmentation(crop=(0.4, 0.4), aspect=(0.5, 2.0)), seeded()))
    torch.testing.assert_close(width * height, torch.full_like(width, 0.4), atol=1e-3, rtol=0)
    ratio = (width / height).log()
    assert ratio.abs().max() <= math.log(2) + 1e-3
    assert ratio.min() < -0.4
    assert ratio.max() > 0.4


def test_shift_moves_by_at_most_its_share(ramp):
    views = augment(ramp, Augmentation(shift=0.2), seeded())
    moved = views[:, :, 10, 10] - ramp[:, :, 10, 10]
    assert moved.abs().max() <= 0.2 + 1e-5
    assert moved.amax(0).min() > 0.12
    assert moved.amin(0).max() < -0.12


def test_rotation_is_an_angle_in_pixels_also_on_a_wide_picture():
    # In coordinates counted in pixels a rotation keeps lengths; on a 12 x 24 picture a map that forgot the
    # sides' ratio would shear.
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(24.0), indexing="ij")
    pixels = torch.stack([x, y]).expand(16, 2, 12, 24) / 24
    views = augment(pixels, Augmentation(rotation=0.3), seeded()) * 24
    right = views[:, :, 6, 13] - views[:, :, 6, 12]
    down = views[:, :, 7, 12] - views[:, :, 6, 12]
    torch.testing.assert_close(right.norm(dim=1), torch.ones(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(down.norm(dim=1), torch.ones(16), atol=1e-3, rtol=0)
    angle = torch.atan2(right[:, 1], right[:, 0])
    assert angle.abs().max() <= 0.3
    assert angle.abs().max() > 0.2
    assert angle.min() < 0 < angle.max()


def test_padding_continues_the_background():
    grey = torch.full((8, 1, 16, 16), 0.4)
    views = augment(grey, Augmentation(rotation=0.5, shift=0.3), seeded())
    torch.testing.assert_close(views, grey)


def test_brightness_scales_and_contrast_stretches_about_the_mean():
    image = (torch.rand(1, 1, 8, 8, generator=seeded()) * 0.4 + 0.2).expand(32, 1, 8, 8)
    bright = augment(image, Augmentation(brightness=0.3), seeded()) / image
    factor = bright.flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert 0.7 <= factor.min() < 0.8
    assert 1.2 < factor.max() <= 1.3
    stretched = augment(image, Augmentation(contrast=0.3), seeded())
    torch.testing.assert_close(stretched.mean((1, 2, 3)), image.mean((1, 2, 3)))
    spread = stretched.flatten(1).std(1) / image.flatten(1).std(1)
    assert 0.7 <= spread.min() < 0.8
    assert 1.2 < spread.max() <= 1.3


def test_noise_has_its_standard_deviation():
    grey = torch.full((32, 1, 16, 16), 0.5)
    noise = augment(grey, Augmentation(noise=0.05), seeded()) - grey
    assert noise.std().item() == pytest.approx(0.05, rel=0.05)
    assert abs(noise.mean().item()) < 0.003


def test_switching_noise_on_leaves_the_other_draws(batch):
    views = augment(batch, DIGITS, seeded())
    noisy = augment(batch, Augmentation(**{**vars(DIGITS), "noise": 1e-4}), seeded())
    torch.testing.assert_close(noisy, views, atol=1e-3, rtol=0)
    assert not torch.equal(noisy, views)


def test_dtype_follows_the_images(batch):
    assert augment(batch.double(), DIGITS, seeded()).dtype == torch.float64
    torch.testing.assert_close(
        augment(batch.double(), DIGITS, seeded()).float(), augment(batch, DIGITS, seeded()), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", (0.0, 1.0)), ("crop", (0.9, 0.5)), ("crop", (0.5, 1.1)), ("aspect", (0.0, 1.0)),
        ("aspect", (2.0, 1.0)), ("rotation", -0.1), ("rotation", 4.0), ("shift", 1.5), ("flip", 1.1),
        ("brightness", -0.1), ("contrast", 1.5), ("noise", -1.0), ("noise", math.nan),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        Augmentation(**{field: value})


def test_images_without_four_axes_are_refused(batch):
    with pytest.raises((ValueError, TypeError), match="images"):
        augment(batch[:, 0], DIGITS)
