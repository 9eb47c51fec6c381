"""Polar-V1 by the one command: the recordings of a seed, shares of trials, the rows and their controls."""

import json

import pytest
import torch
from jsonargparse import ArgumentError

from jepa_lab.__main__ import main
from jepa_lab.config import build, parse
from jepa_lab.data.v1 import V1Config
from jepa_lab.families import FAMILIES, polar
from jepa_lab.families.polar import PolarData, gathered, predict, watch, windows
from jepa_lab.polar.model import PolarV1, PolarV1Config
from jepa_lab.polar.score import bits_per_spike

CELLS = V1Config(size=16, simple=2, complex=1)
DATA = PolarData(train=6.0, held_out=4.0, cells=CELLS)
SMALL = [
    "--name=tiny", "--objective.name=polar", "--objective.features.levels=2", "--objective.features.pairs=2",
    "--data.train=6", "--data.held_out=4", "--data.cells.size=16", "--data.cells.simple=2", "--data.cells.complex=1",
    "--trainer.epochs=1", "--trainer.batch_size=4", "--trainer.lr=0.02", "--trainer.warmup_steps=0", "--seeds=0",
    "--checkpoints=none",
]  # fmt: skip


def rows(tmp_path, *arguments):
    main(["train", *SMALL, f"--out={tmp_path}", *arguments])
    run = json.loads((tmp_path / "tiny.json").read_text())["runs"][0]
    return run, {row["method"]: row for row in run["rows"]}


@pytest.mark.slow
def test_a_run_reports_the_model_beside_its_controls(tmp_path, capsys):
    run, found = rows(tmp_path, "--trainer.evaluate_every=1")
    assert list(found) == ["mean rate", "true rate, no gain", "true rate", "polar"]
    true = found["true rate"]
    assert true["bits"] == pytest.approx(true["best"]) and true["rate_correlation"] == pytest.approx(1)
    assert true["spike_share"] == pytest.approx(1)
    # Strict: the mean of another recording is worth less than that of the one that is scored.
    assert found["mean rate"]["bits"] < 0
    assert 0 < found["true rate, no gain"]["bits"] < true["bits"] and found["polar"]["bits"] < true["bits"]
    assert len(found["polar"]["bits_units"]) == 3 and "forecast_jepa" not in found["polar"]
    mean = sum(found["polar"]["bits_units"]) / 3
    assert found["polar"]["bits"] == pytest.approx(mean, abs=1e-3)
    assert found["polar"]["bits_complex"] == pytest.approx(found["polar"]["bits_units"][2], abs=1e-3)
    assert {"step", "bits_per_spike", "loss"} <= run["curves"].keys() and len(run["curves"]["step"]) == 2
    assert "true rate" in capsys.readouterr().out


@pytest.mark.slow
def test_a_jepa_reports_its_forecast_and_its_embedding(tmp_path):
    found = rows(tmp_path, "--objective.use_jepa=true", "--objective.dynamics=behavior", "--controls=[]")[1]
    assert list(found) == ["polar"]
    row = found["polar"]
    assert row["forecast_jepa"] > 0 and row["forecast_persistence"] > row["forecast_rotation"] > 0
    assert row["embedding_std"] > 0 and row["embedding_rank"] > 1 and isinstance(row["embedding_verdict"], str)


def test_the_seed_draws_cells_gaze_and_spikes_and_the_parts_share_the_cells():
    one, same, other = (windows(DATA, "train", seed, 4).recording for seed in (0, 0, 1))
    assert torch.equal(one.counts, same.counts)
    assert not torch.equal(one.gaze, other.gaze) and not torch.equal(one.cells.frequency, other.cells.frequency)
    held = windows(DATA, "test", 1, 4).recording
    assert torch.equal(held.cells.frequency, other.cells.frequency) and len(held.movie) == 4 * 240
    assert windows(DATA, "validation", 0, 4).recording.movie.shape == held.movie.shape


def test_a_run_holds_out_what_split_says():
    found = {}
    for split in ("test", "validation"):
        config = parse([*SMALL, f"--split={split}", "--trainer.evaluate_every=1"])
        prepared = FAMILIES["polar"].prepare(config, build(config), 0)
        found[split] = prepared.data.held.recording.movie
        expected = windows(DATA, split, 0, 4).recording.movie
        assert torch.equal(found[split], expected)
        assert prepared.evaluate(prepared.objective)["bits_per_spike"] < 1
    assert not torch.equal(found["test"], found["validation"])


def test_few_trials_and_unlabelled_movie():
    config = parse([*SMALL, "--data.share=0.25", "--data.unlabelled=2", "--objective.use_jepa=true"])
    prepared = FAMILIES["polar"].prepare(config, build(config), 0)
    batches = list(prepared.batches(0))
    assert len(batches) == len(windows(DATA, "train", 0, 4)(0))
    for batch in batches:
        assert len(batch["movie"]) == 6 and batch["scored"][:4].any() and not batch["scored"][4:].any()
    assert len(prepared.batches.labelled) == round(0.25 * len(prepared.batches.starts))
    # What is measured does not shrink with the share.
    assert prepared.data.held.scored.sum() == windows(DATA, "test", 0, 4).scored.sum()


def test_predictions_are_in_the_order_of_the_counts():
    held = windows(DATA, "test", 0, 4)
    model = PolarV1(PolarV1Config(), units=3, image_size=16)
    counts, true, scored = gathered(held)
    found = predict(model, held)
    assert found.shape == counts.shape == true.shape and not found.requires_grad
    batch = held.take(torch.tensor([5]))
    torch.testing.assert_close(found[5], model.represent(batch, "rates")[0], rtol=1e-4, atol=1e-6)
    expected = bits_per_spike(found, counts, scored).mean()
    assert watch(held)(model)["bits_per_spike"] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.unlabelled=2", "--data.share=0.5"], "without objective.use_jepa"),
        (["--data.share=0"], "data.share must lie in"),
        (["--data.held_out=0"], "data.held_out must be positive"),
        (["--monitoring.explain_every=1"], "needs a model of texts"),
        (["--data.cells.size=4"], "size must be at least 8"),
    ],
)
def test_settings_that_do_not_fit_are_a_message(arguments, message, unchecked):
    with pytest.raises((ValueError, ArgumentError), match=message):
        build(parse([*SMALL, *arguments]))


def test_the_line_of_progress():
    found = polar.line([{"method": "a", "bits": 0.12345}, {"method": "b", "bits": 1.0}])
    assert found == "bits/spike: a 0.123, b 1.000"
