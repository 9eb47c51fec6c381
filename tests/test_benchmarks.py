"""Do the benchmarks compare equal things, and are results/speed.json and results/speed_gpu.json whole?"""

import copy
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks import losses, parts, steps, table, timing
from benchmarks.__main__ import FILES, GPU_GRID, GRID
from benchmarks.memory import peak_bytes
from benchmarks.plain_step import PlainJEPA, make_step
from jepa_lab.experiment import load_result
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import JEPA, OBJECTIVES, JEPAConfig
from jepa_lab.objectives.jepa import MomentumConfig
from jepa_lab.training import TrainConfig, Trainer

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "name", "kind", "git_revision", "device", "machine", "roof", "goals", "losses", "plain", "parts", "objectives",
    "monitors", "processes", "core_seconds", "wall_seconds",
}  # fmt: skip
ASKED = [goal[0] for goal in table.LOSS_GOALS]
ASKED += ["multi-block masks, 14 x 14", "AdamW and EMA, notebook size", "JEPA step, 16 tokens"]


def check_speed(result):
    """Complaints about a stored speed file."""
    gpu = result.get("name") == "speed_gpu"
    complaints = [f"{key}: missing or unknown" for key in (KEYS | ({"large"} if gpu else set())) ^ result.keys()]
    if complaints:
        return complaints
    complaints += [f"goals: no {what!r}" for what in ASKED if what not in {goal["what"] for goal in result["goals"]}]
    rows = {(row["loss"], row["rows"], row["dim"], row["threads"]): row for row in result["losses"]}
    for loss, size, threads in product(losses.LOSSES, GPU_GRID if gpu else GRID, (1,) if gpu else (1, 2)):
        row = rows.get((loss, *size, threads))
        rivals = {"dense", "fused", "limit"} | ({"lightly"} if loss != "info_nce" else set())
        if row is None or set(row["times"]) != rivals:
            complaints.append(f"losses: {loss} {size} with {threads} threads lacks {rivals - set(row or {})}")
        elif threads == 1 and set(row["peak_bytes"]) != rivals - {"limit"}:
            complaints.append(f"losses: {loss} {size} lacks the memory of a contestant")
    for goal, (_, loss, n, dim, *_) in zip(result["goals"], table.LOSS_GOALS, strict=False):
        times = rows.get((loss, n, dim, 1), {"times": None})["times"]
        if times and goal["ratio_best"] != pytest.approx(times["lightly"]["best_ms"] / times["fused"]["best_ms"], 1e-2):
            complaints.append(f"goals: {goal['what']} is not the ratio of the times in its row")
    measured = {row["objective"] for row in result["objectives"]}  # others may have come later
    if not {"jepa", "contrastive", "vicreg", "jasper"} <= measured <= set(OBJECTIVES):
        complaints.append("objectives: some are missing or unknown")
    if re.search(r"/(home|root|tmp|work|Users)\b", json.dumps(result)):
        complaints.append("a path of the machine")
    return complaints


@pytest.mark.parametrize("device", FILES)
def test_the_stored_speed_is_whole(device):
    result = json.loads((ROOT / "results" / f"{FILES[device]}.json").read_text())
    assert result["device"] == device and result["name"] == FILES[device]
    assert not (complaints := check_speed(result)), "\n".join(complaints)
    for spoil in (
        lambda r: r.pop("roof"),
        lambda r: r["goals"].pop(),
        lambda r: r["goals"].pop(4),
        lambda r: r["goals"][0].update(ratio_best=99.0),
        lambda r: r["losses"].pop(),
        lambda r: r["losses"][0]["times"].pop("lightly"),
        lambda r: r["losses"][0]["peak_bytes"].pop("fused"),
        lambda r: r["objectives"].clear(),
        lambda r: r["machine"].update(processor="/" + "home/x"),
    ):
        bad = copy.deepcopy(result)
        spoil(bad)
        if bad["goals"] != result["goals"][:-1]:  # the last goal is a second size of the plain step, and may be absent
            assert check_speed(bad)


def test_a_missing_speed_file_names_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with `python -m benchmarks`"):
        load_result("speed", tmp_path)


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


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_every_loss_is_raced(loss):
    row = losses.measure(loss, 40, 6, seconds=0.01)
    assert {"dense", "fused", "limit"} <= set(row["times"]) == set(row["spent"])
    assert all(0 < t["best_ms"] <= t["q1_ms"] <= t["median_ms"] <= t["q3_ms"] for t in row["times"].values())
    assert row["peak_bytes"]["dense"] > 0 and row["peak_bytes"]["fused"] > 0
    # whatever ran before: the gradients of the race are not freed inside the measured call
    assert losses.measure(loss, 40, 6, seconds=0.01)["peak_bytes"] == row["peak_bytes"]


def test_what_differs_is_not_compared():
    z, w = torch.randn(2, 4, 3).unbind()
    z.requires_grad_(), w.requires_grad_()
    with pytest.raises(ValueError, match="other gives another value or gradient"):
        losses.check({"dense": lambda: z.sum(), "other": lambda: 1.01 * z.sum()}, z, w)
    with pytest.raises(ValueError, match="other gives another value or gradient"):
        losses.check({"dense": lambda: z.sum(), "other": lambda: torch.nan * z.sum()}, z, w)
    with pytest.raises(ValueError, match="other gives another value or gradient"):
        losses.check({"dense": lambda: (z + w).sum(), "other": lambda: (z + w.detach()).sum()}, z, w)
    with pytest.raises(ValueError, match="other gives another value or gradient"):
        losses.check({"dense": lambda: z.sum(), "other": lambda: z.sum().detach() + 0 * z.sum()}, z, w)


def test_a_race_takes_turns_and_measures_what_is_slow():
    order = []

    def work(name, n):
        order.append(name)
        return sum(range(n))

    spent = timing.race({"slow": lambda: work("s", 900_000), "fast": lambda: work("f", 300_000)}, seconds=0.2)
    assert "sf" in "".join(order) and "fs" in "".join(order)
    found = timing.ratio(spent["slow"], spent["fast"])
    assert 2 < found["ratio_best"] < 4.5  # three times the work
    assert timing.ratio([4.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == {
        "ratio_best": 4.0,
        "ratio_median": 4.0,
        "ratio_q1": 3.5,
        "ratio_q3": 4.0,
        "rounds": 3,
    }


def test_peak_memory_is_exact():
    def three_at_once():
        a = torch.empty(1000)
        b = torch.empty(2000)
        del a
        return b, torch.empty(3000)

    assert peak_bytes(three_at_once) == pytest.approx(4 * 5000, abs=500)


def test_parts_of_a_step():
    assert set(parts.masks(8, 0.01)["spent"]) >= {"ours"}
    trainer = steps.trainer_of("vicreg", {"image": steps.images(32)}, 16)
    assert set(steps.parts(trainer, 3)) == {"forward", "backward", "clip", "optimizer", "average"}
    shares = steps.kernels(lambda: trainer.train_epoch(0))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-2) and shares["matrix products"] > 0.05


@pytest.mark.slow
def test_the_command_in_its_quick_mode():
    command = [sys.executable, "-m", "benchmarks", "--quick", "--seconds", "0.05"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for text in ("jepa", "contrastive", "jasper", *losses.LOSSES, "JEPA step, 16 tokens", "CollapseMonitor, each step"):
        assert text in done.stdout
