"""The monitor: the numbers of the metrics, without touching the caller's randomness or its tensors, and cheap."""

import time

import numpy as np
import pytest
import torch

from jepa_lab.data.images import digits
from jepa_lab.metrics import effective_rank, mean_cosine, mean_norm_ratio, normalized_std, rankme
from jepa_lab.monitor import CollapseMonitor
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import JEPA, JEPAConfig
from jepa_lab.training import TrainConfig, Trainer, seed_all


def gaussian(n=100, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_history_holds_the_metrics_of_each_reading():
    monitor = CollapseMonitor()
    batches = [gaussian(seed=i) + i for i in range(40)]
    for i, z in enumerate(batches):
        monitor(z, loss=torch.tensor(float(i)), lr=0.1 * i)
    history = monitor.history
    assert {len(values) for values in history.values()} == {40} and history["step"] == list(range(1, 41))
    assert history["loss"] == list(range(40)) and history["lr"] == pytest.approx([0.1 * i for i in range(40)])
    for i in (0, 17, 39):
        z = batches[i]
        for metric in (normalized_std, mean_cosine, effective_rank, rankme, mean_norm_ratio):
            assert history[metric.__name__][i] == pytest.approx(metric(z).item(), rel=1e-5)
        assert history["std"][i] == pytest.approx(z.std(0).square().mean().sqrt().item())


def test_every_and_step():
    monitor = CollapseMonitor(every=3)
    for _ in range(8):
        monitor(gaussian())
    assert monitor.history["step"] == [1, 4, 7]
    monitor = CollapseMonitor()
    monitor(gaussian().numpy(), step=50)
    assert monitor.history["step"] == [50]


def test_reading_a_history_in_between_loses_nothing():
    monitor = CollapseMonitor()
    for i in range(5):
        monitor(gaussian(seed=i))
        assert len(monitor.history["std"]) == i + 1


def test_rows_are_sampled_from_a_generator_of_its_own():
    z = gaussian(1000, 8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (CollapseMonitor(max_rows=50, seed=seed) for seed in (0, 0, 1))
    for monitor in (first, again, other):
        monitor(z)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.history == again.history and first.history["std"] != other.history["std"]
    assert first.report().evidence.rows == 50
    assert first.history["std"][0] == pytest.approx(z.std().item(), rel=0.2)


def test_it_neither_keeps_the_graph_nor_sees_what_the_caller_writes_later():
    monitor = CollapseMonitor()
    z = gaussian().requires_grad_()
    monitor(z, loss=z.sum())
    written = gaussian()
    loss = torch.ones(())
    monitor(written, loss=loss)
    written.zero_()
    loss.zero_()
    assert monitor.history["std"][1] == pytest.approx(1, abs=0.1) and monitor.history["loss"][1] == 1
    assert not monitor._last.requires_grad and z.grad is None


def test_a_call_measures_nothing_yet(monkeypatch):
    """Measuring moves numbers to the host: not during a step, but for several readings at once."""
    measured = []
    monkeypatch.setattr("jepa_lab.monitor.measure", lambda rows: measured.append(len(rows)) or torch.zeros(6))
    monitor = CollapseMonitor()
    for _ in range(15):
        monitor(gaussian())
    assert measured == []
    monitor(gaussian())
    assert len(measured) == 16  # the rows of more would fill the memory of the device


def test_a_broken_reading_does_not_stop_the_training():
    monitor = CollapseMonitor()
    monitor(gaussian())
    broken = gaussian()
    broken[0, 0] = torch.nan
    monitor(broken)
    monitor(gaussian())
    assert np.isnan(monitor.history["std"]).tolist() == [False, True, False]
    assert monitor.alarms == []
    monitor.plot().canvas.draw()


def test_alarm_at_a_fall_to_less_than_a_fifth_once():
    monitor = CollapseMonitor()
    for offset in (3, 2, 1, 1.5, 9, 20, 40, 1, 60, 80):
        monitor(gaussian() + offset)
    std = monitor.history["normalized_std"]
    assert std[4] < max(std[:4]) / 5 < std[3]
    assert monitor.alarms == [5, 9]
    calm = CollapseMonitor()
    for offset in (3, 2, 1, 2, 3):
        calm(gaussian() + offset)
    assert calm.alarms == [] == CollapseMonitor().alarms


def test_report_is_that_of_the_last_rows():
    monitor = CollapseMonitor(every=2)
    monitor(gaussian())
    monitor(torch.zeros(20, 4))
    assert monitor.report().verdict == "healthy"
    monitor(torch.zeros(20, 4))
    assert monitor.report().verdict == "complete collapse"
    monitor(1e-3 * gaussian())
    monitor(1e-3 * gaussian())
    assert monitor.report(reference_std=1.0).verdict == "too small"


def test_plot_has_a_panel_for_every_number_and_a_line_for_every_alarm():
    monitor = CollapseMonitor()
    for offset in (1, 1, 50):
        monitor(gaussian() + offset, loss=1.0)
    fig = monitor.plot()
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == [name for name in monitor.history if name != "step"]
    assert len(fig.axes[0].get_lines()) == 2
    assert fig.axes[0].get_yscale() == "log" and fig.axes[1].get_yscale() == "linear"
    assert sum(ax.get_xlabel() == "training step" for ax in fig.axes) == 3
    fig.canvas.draw()


def test_bad_calls_are_named():
    for settings, says in (
        ({"every": 0}, "every must be at least 1"),
        ({"max_rows": 1}, "max_rows must be at least 2"),
    ):
        with pytest.raises(ValueError, match=says):
            CollapseMonitor(**settings)
    monitor = CollapseMonitor()
    for read in (monitor.report, monitor.plot):
        with pytest.raises(ValueError, match="has not been called yet"):
            read()
    for z in (torch.zeros(3), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match="at least 2 rows"):
            monitor(z)
    with pytest.raises(ValueError, match="extra must not be called"):
        monitor(gaussian(), std=1.0)
    monitor(gaussian(), loss=1.0)
    for extra in ({}, {"lr": 1.0}):
        with pytest.raises(ValueError, match="extra must be loss as before"):
            monitor(gaussian(), **extra)


def test_it_watches_a_trainer():
    data = digits()
    objective = JEPA(image_encoder(data["train"]["image"]))
    monitor = CollapseMonitor(every=5)
    trainer = Trainer(
        objective,
        {key: value[:128] for key, value in data["train"].items()},
        TrainConfig(epochs=2, evaluate_every=1),
        evaluate=monitor.watch(data["validation"]),
    )
    trainer.fit()
    assert trainer.evaluations["normalized_std"] == monitor.history["normalized_std"]
    assert monitor.history["step"] == [1, 2] and trainer.evaluations["step"] == [2, 4]
    assert monitor.history["std"][1] == pytest.approx(
        objective.represent(data["validation"]).std(0).square().mean().sqrt().item(), rel=1e-4
    )


@pytest.mark.slow
def test_a_collapse_raises_an_alarm_and_a_healthy_run_does_not():
    """Five seeds: with gradient into the targets the std falls to below 1/15 of its start, with an EMA not to 1/2."""
    data = digits()
    said = {}
    for target in ("none", "ema"):
        seed_all(0)
        objective = JEPA(image_encoder(data["train"]["image"]), JEPAConfig(target=target))
        monitor = CollapseMonitor()
        evaluate = monitor.watch(data["validation"])
        evaluate(objective)
        Trainer(objective, data["train"], TrainConfig(epochs=8, evaluate_every=1), evaluate=evaluate).fit()
        said[target] = (len(monitor.alarms), monitor.report().verdict)
    # An untrained transformer has a constant offset, and 8 epochs with an EMA have not undone it.
    assert said == {"none": (1, "complete collapse"), "ema": (0, "constant offset")}


@pytest.mark.slow
def test_a_reading_costs_a_small_share_of_a_step():
    """Measured at 3 % of a step of the digits JEPA (0.7 ms of 21 ms); the margin is for busy machines."""
    data = digits()
    trainer = Trainer(JEPA(image_encoder(data["train"]["image"])), data["train"], TrainConfig(epochs=2))
    trainer.fit()
    step = trainer.core_seconds / len(trainer.history["step"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(5):
            monitor, z, started = CollapseMonitor(), gaussian(512, 64), time.process_time()
            for _ in range(32):
                monitor(z, loss=1.0)
            assert len(monitor.history["std"]) == 32
            best = min(best, (time.process_time() - started) / 32)
    finally:
        torch.set_num_threads(threads)
    assert best < 0.15 * step
