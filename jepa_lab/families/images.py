"""Runs on images: train one model on the training images, probe it beside the control rows."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from jepa_lab.data import images
from jepa_lab.families.base import Prepared, check_settings
from jepa_lab.image_probes import ReadOutConfig, read_outs
from jepa_lab.monitor import CollapseMonitor
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import build_objective
from jepa_lab.probes import CONTROLS, control_rows, probe
from jepa_lab.training import Trainer, seed_all

CURVE_ROWS = 512  # validation rows behind a curve: enough for a spectrum, cheap enough for every epoch


def add_arguments(parser: ArgumentParser) -> None:
    """The settings that only a run on images has."""
    parser.add_argument("--data.name", type=Literal[tuple(images.DATASETS)], default="digits")
    parser.add_argument("--data.settings", type=dict[str, Any], default={}, help="keyword arguments of the loader")
    parser.add_class_arguments(EncoderConfig, "encoder")
    parser.add_argument("--controls", type=list[Literal[CONTROLS]], default=list(CONTROLS))
    parser.add_argument("--tokens", type=bool, default=True, help="probe all tokens too, not only their mean")
    parser.add_argument("--probe_rows", type=int, default=0, help="probes train on the first rows only; 0 = on all")
    parser.add_class_arguments(ReadOutConfig, "readouts")


def check(config: Namespace) -> None:
    """Raises: ValueError for settings out of range, or that the loader does not know."""
    if config.monitoring.explain_every:
        raise ValueError(
            f"monitoring.explain_every={config.monitoring.explain_every} needs a model of texts; set it to 0"
        )
    if config.probe_rows < 0:
        raise ValueError(f"probe_rows must not be negative (0 = all rows), got {config.probe_rows}")
    ReadOutConfig(**vars(config.readouts)).check(config.data.name)
    check_settings(config.data.name, images.DATASETS[config.data.name], config.data.settings)


def prepare(config: Namespace, parts: Namespace, seed: int) -> Prepared:
    """The images, and an untrained model; with `trainer.evaluate_every`, collapse metrics on validation rows."""
    data = images.load(config.data.name, **config.data.settings)
    seed_all(seed)
    encoder = image_encoder(data["train"]["image"], parts.encoder)
    objective = build_objective(config.objective.name, encoder, parts.objective, seed=seed)
    trainer = replace(parts.trainer, seed=seed)
    few = {key: value[:CURVE_ROWS] for key, value in data["validation"].items()}
    watch = CollapseMonitor(max_rows=CURVE_ROWS).watch(few) if trainer.evaluate_every else None
    return Prepared(objective, data["train"], trainer, watch, data)


def measure(config: Namespace, parts: Namespace, prepared: Prepared, seed: int) -> list[dict[str, Any]]:
    """Probe the trained model, with the control rows of the same seed before it."""
    data = prepared.data

    def make_encoder():
        return image_encoder(data["train"]["image"], parts.encoder)

    how = {"tokens": config.tokens, "train_rows": config.probe_rows}
    how["more"] = read_outs(parts.readouts, data, config.split, seed, config.probe_rows)
    rows = control_rows(data, make_encoder, prepared.trainer, seed, config.split, config.controls, **how)
    return [*rows, probe(prepared.objective, data, config.split, config.objective.name, **how)]


def curves(before: dict[str, float], trainer: Trainer) -> dict[str, list[int | float | None]]:
    """The readings before and during training, and the mean loss since the reading before (none for the first)."""
    log = trainer.evaluations
    columns = {"step": [0, *log["step"]]}
    columns |= {name: [_digits(value) for value in (before[name], *log[name])] for name in before}
    loss, steps = trainer.history["loss"], columns["step"]
    columns["loss"] = [None, *(_digits(sum(loss[a:b]) / (b - a)) for a, b in pairwise(steps))]
    return columns


def _digits(value: float) -> float:
    """Five significant digits: a curve is for looking at."""
    return float(f"{value:.5g}")


def line(rows: list[dict[str, Any]]) -> str:
    """The rows of a run in one line of progress."""
    return "kNN %: " + ", ".join(f"{row['method']} {100 * row['knn']:.1f}" for row in rows)
