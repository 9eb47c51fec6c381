"""CollapseMonitor: what it reads, what it costs, what it leaves alone, and when it raises the alarm."""

import statistics
import time

import pytest
import torch

from jepa_lab.data.images import digits
from jepa_lab.metrics import effective_rank, mean_cosine, mean_norm_ratio, normalized_std, rankme
from jepa_lab.monitor import CollapseMonitor
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA, JEPAConfig
from jepa_lab.training import TrainConfig, Trainer, seed_all


def gaussian(n=100, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_readings_are_those_of_the_metrics():
    monitor = CollapseMonitor()
    batches = [gaussian(seed=s) * (s + 1) + s for s in range(3)]
    for z in batches:
        monitor(z, loss=z.mean())
    history = monitor.history
    assert history["step"] == [1, 2, 3] and {len(column) for column in history.values()} == {3}
    for name, metric in [
        ("normalized_std", normalized_std),
        ("mean_cosine", mean_cosine),
        ("effective_rank", effective_rank),
        ("rankme", rankme),
        ("mean_norm_ratio", mean_norm_ratio),
        ("std", lambda z: z.var(0).mean().sqrt()),
        ("loss", torch.mean),
    ]:
        assert history[name] == pytest.approx([metric(z).item() for z in batches], rel=1e-3, abs=1e-4), name


def test_every_and_steps():
    monitor = CollapseMonitor(every=3)
    for _ in range(8):
        monitor(gaussian())
    assert monitor.history["step"] == [1, 4, 7]
    monitor = CollapseMonitor()
    monitor(gaussian(), step=40)
    monitor(gaussian(), step=50)
    assert monitor.history["step"] == [40, 50]


def test_it_samples_rows_from_its_own_generator_and_keeps_no_reference():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    one, two = CollapseMonitor(max_rows=32, seed=1), CollapseMonitor(max_rows=32, seed=1)
    z = gaussian(1000, 64)
    for monitor in (one, two):
        monitor(z)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.history == two.history and one.history["effective_rank"][0] < 32  # of 32 rows, not of 1000
    assert CollapseMonitor(max_rows=32, seed=2)(z) is None
    monitor, small = CollapseMonitor(), gaussian().requires_grad_()
    monitor(small)
    with torch.no_grad():
        small.zero_()  # the caller reuses its memory before the reading is measured
    assert monitor.history["std"][0] > 0.5


def test_alarms_count_a_fall_once():
    monitor = CollapseMonitor()
    for step, spread in enumerate([0.5, 0.6, 0.5, 0.3, 0.01, 0.005, 0.01, 0.5, 0.01]):
        monitor(1 + spread * gaussian(seed=step), step=step)
    assert monitor.alarms == [4, 8]
    assert CollapseMonitor().alarms == []
    steady = CollapseMonitor()
    for step in range(5):
        steady(gaussian(seed=step))
    assert steady.alarms == []


def test_report_and_plot():
    monitor = CollapseMonitor()
    with pytest.raises(ValueError, match="has not been called yet"):
        monitor.report()
    monitor(gaussian())
    assert monitor.report().verdict == "healthy"
    monitor(torch.ones(100, 16))
    assert monitor.report().verdict == "complete collapse"
    figure = monitor.plot()
    assert len([ax for ax in figure.axes if ax.lines]) >= 6


def test_bad_input():
    for arguments, message in [({"every": 0}, "every must be at least 1"), ({"max_rows": 1}, "max_rows must be at")]:
        with pytest.raises(ValueError, match=message):
            CollapseMonitor(**arguments)
    monitor = CollapseMonitor()
    for bad in (torch.randn(4), torch.randn(1, 4)):
        with pytest.raises(ValueError, match="at least 2 rows"):
            monitor(bad)
    monitor(gaussian(), loss=1.0)
    with pytest.raises(ValueError, match="extra must be loss as before"):
        monitor(gaussian(), accuracy=1.0)
    with pytest.raises(ValueError, match="extra must not be called"):
        CollapseMonitor()(gaussian(), std=1.0)


def run(target, epochs=8):
    data = digits()
    seed_all(0)
    objective = JEPA(image_encoder(data["train"]["image"], EncoderConfig()), JEPAConfig(target=target))
    monitor = CollapseMonitor()
    watch = monitor.watch(data["validation"])
    before = watch(objective)
    trainer = Trainer(objective, data["train"], TrainConfig(epochs=epochs, evaluate_every=1), evaluate=watch)
    trainer.fit()
    return before, trainer, monitor


@pytest.mark.slow
def test_it_watches_a_training_run_and_sees_the_collapse():
    before, trainer, monitor = run("none")
    log = trainer.evaluations
    assert len(log["normalized_std"]) == 8 and log["step"][-1] == 120
    assert log["normalized_std"][-1] < before["normalized_std"] / 10
    assert monitor.alarms and monitor.report().verdict == "complete collapse"
    _, _, healthy = run("ema")
    assert healthy.alarms == []


@pytest.mark.slow
def test_a_reading_costs_a_small_share_of_a_step():
    """256 rows of 64 features against a step of the digits JEPA; measured: 2 to 4 %."""
    data = digits()
    objective = JEPA(image_encoder(data["train"]["image"], EncoderConfig()))
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    batch = {"image": data["train"]["image"][:64]}
    monitor, z = CollapseMonitor(max_rows=256), gaussian(256, 64)

    def step():
        loss = objective(batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(0.5)

    def readings():
        for _ in range(16):  # as many as are measured together
            monitor(z)
        assert monitor.history

    def seconds(f):
        started = time.process_time()
        f()
        return time.process_time() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for f in (step, readings):
            f()
        steps = statistics.median(seconds(step) for _ in range(15))
        reading = statistics.median(seconds(readings) for _ in range(5)) / 16
    finally:
        torch.set_num_threads(threads)
    assert reading < 0.15 * steps, f"{reading / steps:.1%}"
