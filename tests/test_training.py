"""The loop: it learns, it repeats itself exactly, it stops on NaN, and what prevents collapse does."""

import math
from itertools import pairwise

import pytest
import torch

from jepa_lab.data.augment import DIGITS
from jepa_lab.data.images import digits
from jepa_lab.nets import EncoderConfig, TokenEncoder, Transformer, image_encoder
from jepa_lab.objectives import JEPA, Contrastive, ContrastiveConfig, JEPAConfig, MomentumConfig, Objective, Supervised
from jepa_lab.training import TrainConfig, Trainer, lr_factor, pick_device, seed_all, shuffled_batches

TINY = EncoderConfig(patch=4, dim=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def data():
    return digits()


def supervised(data, seed=0, **settings):
    seed_all(seed)
    objective = Supervised(image_encoder(data["train"]["image"], TINY), seed=seed)
    return Trainer(objective, data["train"], TrainConfig(**{"epochs": 8, "seed": seed, **settings}))


def test_it_learns_and_repeats_itself_bit_for_bit(data):
    a, b, other = supervised(data), supervised(data), supervised(data, seed=1)
    ha, hb, ho = a.fit(), b.fit(), other.fit()
    assert ha["loss"] == hb["loss"] != ho["loss"]
    assert sum(ha["loss"][-10:]) < 0.8 * sum(ha["loss"][:10])
    for p, q in zip(a.objective.parameters(), b.objective.parameters(), strict=True):
        assert torch.equal(p, q)
    assert len(ha["loss"]) == len(ha["lr"]) == len(ha["grad_norm"]) == len(ha["accuracy"]) == 8 * 15
    assert ha["step"] == list(range(1, 121))
    assert a.core_seconds > 0


def test_hooks_are_called_in_order_and_progress_runs_from_0_to_1(data):
    calls = []

    class Recorder(Supervised):
        def before_step(self, progress):
            calls.append(("before", progress, self.classify.weight.clone()))

        def after_step(self, progress):
            calls.append(("after", progress, self.classify.weight.clone()))

    objective = Recorder(image_encoder(data["train"]["image"], TINY))
    Trainer(objective, data["train"], TrainConfig(epochs=2, batch_size=500)).fit()
    assert [(kind, progress) for kind, progress, _ in calls] == [
        (kind, progress) for progress in (0.0, 0.25, 0.5, 0.75) for kind in ("before", "after")
    ]
    for before, after in zip(calls[::2], calls[1::2], strict=True):
        assert not torch.equal(before[2], after[2])  # after_step sees the weights that the step has made


def test_batches_may_be_a_function_of_the_epoch(data):
    seen = []

    def batches(epoch):
        seen.append(epoch)
        part = {key: value[:32] for key, value in data["train"].items()}
        return [part] * (epoch + 1)

    trainer = Trainer(Supervised(image_encoder(data["train"]["image"], TINY)), batches, TrainConfig(epochs=3))
    assert len(trainer.fit()["loss"]) == 1 + 2 + 3 and seen == [0, 1, 2]


def test_shuffled_batches_cover_the_data_once_and_depend_on_seed_and_epoch():
    data = {"image": torch.arange(20.0)[:, None], "label": torch.arange(20)}
    epoch = shuffled_batches(data, 6, seed=3)
    rows = torch.cat([b["label"] for b in epoch(0)])
    assert len(epoch(0)) == 3 and len(rows) == 18 == len(rows.unique())
    assert all(torch.equal(b["image"][:, 0], b["label"].float()) for b in epoch(0))
    assert torch.equal(rows, torch.cat([b["label"] for b in epoch(0)]))
    assert not torch.equal(rows, torch.cat([b["label"] for b in epoch(1)]))
    assert not torch.equal(rows, torch.cat([b["label"] for b in shuffled_batches(data, 6, seed=4)(0)]))
    with pytest.raises(ValueError, match="batch_size=21 is larger than the data set of 20"):
        shuffled_batches(data, 21)
    with pytest.raises(ValueError, match="same length"):
        shuffled_batches(data | {"label": torch.arange(3)}, 2)


def test_evaluate_runs_on_schedule_and_leaves_train_mode_on(data):
    trainer = supervised(data, epochs=5, evaluate_every=2)
    trainer.evaluate = lambda objective: {"mode": float(objective.eval().training)}
    trainer.fit()
    assert trainer.evaluations == {"epoch": [2, 4, 5], "step": [30, 60, 75], "mode": [0.0, 0.0, 0.0]}
    assert trainer.objective.training


class Slope(Objective):
    """A loss that is linear in its one weight, with slope 8; remembers what the loop did to it."""

    def __init__(self):
        super().__init__(TokenEncoder(torch.nn.Identity(), Transformer(4, 1, 1), 4))
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.trace = []

    def forward(self, batch):
        self.trace.append({"training": self.training})
        return 8 * self.weight.sum(), {}

    def param_groups(self, lr):
        return [{"params": [self.weight], "lr": lr, "weight_decay": 0.0}]

    def after_step(self, progress):
        self.trace[-1] |= {"grad": self.weight.grad.item(), "weight": self.weight.item()}


def slope(**settings):
    config = TrainConfig(**{"epochs": 3, "batch_size": 2, "evaluate_every": 1, "lr": 0.1} | settings)
    trainer = Trainer(
        Slope(), {"x": torch.zeros(8, 1)}, config, evaluate=lambda objective: {"x": objective.eval().weight.item()}
    )
    trainer.fit()
    return trainer


def test_gradients_are_fresh_at_every_step_and_clipped():
    assert [t["grad"] for t in slope(clip_norm=100.0).objective.trace] == pytest.approx(
        [8.0] * 12
    )  # not 8, 16, 24, ...
    clipped = slope(clip_norm=0.5)
    assert [t["grad"] for t in clipped.objective.trace] == pytest.approx([0.5] * 12, rel=1e-4)
    assert clipped.history["grad_norm"] == pytest.approx([8.0] * 12)  # the log shows the norm before clipping


def test_the_learning_rate_of_the_schedule_is_the_one_that_is_used():
    trainer = slope(warmup_steps=4)
    weights = [0.0] + [t["weight"] for t in trainer.objective.trace]
    steps = [a - b for a, b in pairwise(weights)]  # AdamW moves by lr along a constant gradient
    assert steps == pytest.approx(trainer.history["lr"], rel=1e-3)
    assert steps == pytest.approx([0.1 * lr_factor(i, i / 12, 4) for i in range(12)], rel=1e-3)


def test_training_mode_is_back_after_an_evaluation():
    assert all(t["training"] for t in slope().objective.trace)


def test_learning_rate_warms_up_and_decays():
    factors = [lr_factor(step, step / 200, 20) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 20)
    assert max(factors) == pytest.approx(0.98, abs=0.02) and factors.index(max(factors)) == 19
    assert factors[-1] < 1e-3
    assert lr_factor(0, 0.0, 0) == 1.0


@pytest.mark.parametrize("where", ["data", "metric"])
def test_nan_stops_with_the_step_and_the_metric(data, where):
    class Broken(Supervised):
        calls = 0

        def forward(self, batch):
            loss, metrics = super().forward(batch)
            self.calls += 1
            if self.calls == 7:
                if where == "data":
                    return loss * torch.nan, metrics
                metrics["accuracy"] = torch.tensor(torch.inf)
            return loss, metrics

    trainer = Trainer(Broken(image_encoder(data["train"]["image"], TINY)), data["train"], TrainConfig(epochs=2))
    name = "loss is nan" if where == "data" else "accuracy is inf"
    with pytest.raises(FloatingPointError, match=f"{name} at step 7"):
        trainer.fit()
    assert len(trainer.history["loss"]) == 6  # what came before is kept


def test_threads_are_restored_even_after_an_error(data):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trainer = supervised(data, epochs=1)
        trainer.batches = None
        with pytest.raises(TypeError):
            trainer.fit()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_config_refuses_values_out_of_range():
    for bad in (
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"warmup_steps": -1},
        {"weight_decay": math.nan},
    ):
        with pytest.raises(ValueError, match=f"trainer.{next(iter(bad))}"):
            TrainConfig(**bad)
    assert pick_device("cpu").type == "cpu"


# --------------------------------------------------------------------------------------------------- pathology


def run(data, target, seed=0, epochs=12):
    seed_all(seed)
    encoder = image_encoder(data["train"]["image"])
    objective = JEPA(encoder, JEPAConfig(target=target, momentum=MomentumConfig(start=0.99, end=0.999)), seed)
    trainer = Trainer(objective, data["train"], TrainConfig(epochs=epochs, seed=seed))
    return objective, trainer.fit()


@pytest.mark.slow
def test_without_stop_gradient_and_ema_jepa_collapses(data):
    """The deletion that every JEPA must survive: the std of the targets falls far below that of the full method."""
    _, healthy = run(data, "ema")
    _, collapsed = run(data, "none")
    assert collapsed["target_std"][-1] < 0.2 * healthy["target_std"][-1]
    assert collapsed["target_std"][-1] < 0.1 * collapsed["target_std"][0]
    assert collapsed["loss"][-1] < healthy["loss"][-1]  # and its loss looks better


@pytest.mark.slow
def test_contrastive_learning_separates_views_of_different_digits(data):
    seed_all(0)
    objective = Contrastive(image_encoder(data["train"]["image"]), ContrastiveConfig(augmentation=DIGITS))
    history = Trainer(objective, data["train"], TrainConfig(epochs=10, batch_size=128)).fit()
    assert history["loss"][0] == pytest.approx(math.log(255), abs=0.3)  # near chance: all images look alike at first
    assert history["loss"][-1] < history["loss"][0] - 0.5
    gap = [p - n for p, n in zip(history["positive_cosine"], history["negative_cosine"], strict=True)]
    assert gap[0] < 0.1 and gap[-1] > 0.3
