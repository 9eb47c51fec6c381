"""Mixed precision, trackers and the share of each process: what stands between the loop and the devices."""

import subprocess
import sys

import pytest
import torch

from jepa_lab.data.images import digits
from jepa_lab.engine import Accelerated, SingleDevice, make_engine
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA
from jepa_lab.training import TrainConfig, Trainer, seed_all

TRAIN = {key: value[:128] for key, value in digits()["train"].items()}


def trainer(**settings):
    seed_all(0)
    encoder = image_encoder(TRAIN["image"], EncoderConfig(patch=4, dim=16, depth=1, heads=2))
    return Trainer(JEPA(encoder), TRAIN, TrainConfig(**{"epochs": 2, "batch_size": 32, "device": "cpu"} | settings))


def test_plain_training_does_without_accelerate():
    assert type(make_engine("fp32", (), "cpu", "runs")) is SingleDevice
    code = "import sys, jepa_lab.__main__; assert 'accelerate' not in sys.modules, 'a second of import for nothing'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    seen = []
    mixed = trainer(precision="bf16")
    mixed.objective.predictor.back.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    mixed.fit()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in mixed.objective.parameters()} == {torch.float32}
    plain = trainer()
    plain.fit()
    assert mixed.history["loss"] != plain.history["loss"]
    torch.testing.assert_close(
        torch.tensor(mixed.history["loss"]), torch.tensor(plain.history["loss"]), rtol=0.1, atol=0.05
    )
    # represent is called on the objective itself, outside the mixed forward pass
    assert mixed.objective.represent({"image": TRAIN["image"][:4]}).dtype == torch.float32


def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU"):
        trainer(precision="fp16")


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ValueError, match="trackers: wandb cannot be used, the package is not installed"):
        trainer(trackers=("wandb",))


def test_trackers_get_every_step_and_every_evaluation():
    class Recorder(SingleDevice):
        def __init__(self):
            super().__init__(torch.device("cpu"))
            self.opened, self.logged, self.closed = [], [], 0

        def start(self, name):
            self.opened.append(name)

        def log(self, values, step):
            self.logged.append((step, set(values)))

        def finish(self):
            self.closed += 1

    one = trainer(evaluate_every=1)
    one.engine, one.evaluate = Recorder(), lambda objective: {"score": 1.0}
    one.fit()
    assert one.engine.opened == ["JEPA"] and one.engine.closed == 1
    assert [step for step, names in one.engine.logged if "loss" in names] == list(range(1, 9))
    assert [step for step, names in one.engine.logged if "validation/score" in names] == [4, 8]


def test_each_process_has_its_own_rows_of_the_global_batch():
    engine = object.__new__(Accelerated)
    batch = {"x": torch.arange(8), "y": torch.arange(16).reshape(8, 2)}
    shares = []
    for engine.rank in range(2):
        engine.world = 2
        shares.append(engine.share(batch)["x"])
    assert torch.stack(shares).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    for bad in ({"x": torch.arange(7)}, {"x": torch.arange(8), "y": torch.arange(6)}):
        with pytest.raises(ValueError, match="same number of rows, divisible by the 2 processes"):
            engine.share(bad)
    engine.world = 1
    assert engine.share(batch) is batch


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch):
    class Three(SingleDevice):
        world = 3

    monkeypatch.setattr("jepa_lab.training.make_engine", lambda *args: Three(torch.device("cpu")))
    with pytest.raises(ValueError, match="batch_size=32 is the batch of all processes together and must be divisible"):
        trainer()
