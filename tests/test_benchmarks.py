"""Do the benchmarks compare equal things?"""

import pytest
import torch

from benchmarks.plain_step import PlainJEPA, make_step
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import JEPA, JEPAConfig
from jepa_lab.objectives.jepa import MomentumConfig
from jepa_lab.training import TrainConfig, Trainer


def test_the_plain_step_learns_what_ours_learns():
    """The losses of eight steps: the same masks, targets, updates and averages, or they would part."""
    torch.manual_seed(0)
    image = torch.rand(32, 2, 8, 8)
    ours = JEPA(image_encoder(image), JEPAConfig(momentum=MomentumConfig("constant", 0.9)), seed=3)
    plain = PlainJEPA(image).take(ours.state_dict())
    step = make_step(plain, lr=2e-3, tau=0.9, seed=3)
    config = TrainConfig(epochs=10**6, batch_size=32, warmup_steps=0)
    trainer = Trainer(ours, lambda epoch: [{"image": image}], config)
    for epoch in range(8):
        trainer.train_epoch(epoch)
    expected = trainer.history["loss"]
    assert expected[-1] < 0.9 * expected[0]
    for i, loss in enumerate(expected):
        assert step(image).item() == pytest.approx(loss, rel=1e-4), f"step {i + 1}"
