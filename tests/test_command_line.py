"""A run that is stopped, goes on, and is measured again, all by the one command."""

import gc
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

from jepa_lab import checkpoints
from jepa_lab.__main__ import main
from jepa_lab.data.images import digits
from jepa_lab.monitor import TrainingMonitor
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA
from jepa_lab.training import TrainConfig, Trainer

ROOT = Path(__file__).resolve().parent.parent
YAML = str(ROOT / "jepa_lab" / "configs" / "digits_jepa.yaml")
SMALL = ["--encoder.depth=1", "--encoder.dim=16", "--encoder.patch=4", "--tokens=false", "--probe_rows=200"]
ONE = ["--trainer.epochs=4", "--seeds", "0", "--controls=[]"]


def command(folder, *extra):
    return ["train", "--config", YAML, *SMALL, *ONE, "--out", str(folder), *extra]


def rows(folder):
    return [run["rows"] for run in json.loads((folder / "digits_jepa.json").read_text())["runs"]]


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints" / "digits_jepa" / "seed0").iterdir())


@pytest.fixture
def stop_after(monkeypatch):
    """Ctrl-C in the epoch after so many: `stop_after(2)`; None lets all run."""
    train_epoch = Trainer.train_epoch

    def arrange(epochs):
        def one(self, epoch):
            if epoch == epochs:
                raise KeyboardInterrupt
            return train_epoch(self, epoch)

        monkeypatch.setattr(Trainer, "train_epoch", one)

    return arrange


def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same_numbers(tmp_path, stop_after, capsys, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(command(whole)) == 0
    assert files(whole) == ["epoch_00003.pt", "epoch_00004.pt"]
    stop_after(2)
    assert main(command(stopped)) == 130
    assert files(stopped) == ["epoch_00001.pt", "epoch_00002.pt"]
    said = capsys.readouterr().err
    assert str(stopped / "checkpoints" / "digits_jepa") in said

    stop_after(None)
    assert main(command(stopped)) == 1  # a new run must not write over what is left of that one
    assert re.search(r"interrupted after epoch 2: add --resume true to go on", capsys.readouterr().err)
    assert files(stopped) == ["epoch_00001.pt", "epoch_00002.pt"]

    seen = []
    train_epoch = Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, epoch: seen.append(epoch) or train_epoch(self, epoch))
    again = shlex.split(said.strip().splitlines()[-1])
    assert again[:4] == ["python", "-m", "jepa_lab", "train"]
    assert main(again[3:]) == 0
    assert seen == [2, 3]  # not from the start
    assert rows(stopped) == rows(whole)


def test_of_several_processes_one_says_how_to_go_on(tmp_path, stop_after, capsys, monkeypatch):
    stop_after(0)
    monkeypatch.setattr("jepa_lab.__main__.world_size", lambda: 2)
    assert main(command(tmp_path, "--resume", "true")) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("torchrun --nproc_per_node=2 -m jepa_lab train") and said.count("--resume") == 1
    monkeypatch.setattr("jepa_lab.__main__.rank", lambda: 1)
    assert main(command(tmp_path)) == 130
    assert capsys.readouterr().err == ""


def test_resume_from_a_path(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    path = tmp_path / "checkpoints" / "digits_jepa" / "seed0" / "epoch_00003.pt"
    other = tmp_path / "other"
    assert main(command(other, "--resume", str(path))) == 0
    assert rows(other) == rows(tmp_path)
    capsys.readouterr()
    assert main(command(other, "--resume", str(path), "--trainer.lr=0.5")) == 1
    assert "trainer.lr: 0.002 -> 0.5" in capsys.readouterr().err
    assert main(command(other, "--resume", str(path), "--seeds", "1")) == 1
    assert "trainer.seed: 0 -> 1" in capsys.readouterr().err
    assert main(command(other, "--resume", str(path), "--seeds", "0", "1")) == 2
    assert "is the checkpoint of one run, and this command makes 2" in capsys.readouterr().err
    assert main(command(other, "--resume", str(tmp_path / "nothing.pt"))) == 1
    assert "nothing.pt" in capsys.readouterr().err


def test_a_run_that_came_to_its_end_is_replaced(tmp_path):
    assert main(command(tmp_path)) == 0
    first = rows(tmp_path)
    assert main(command(tmp_path, "--trainer.epochs=2")) == 0
    assert files(tmp_path) == ["epoch_00001.pt", "epoch_00002.pt"]
    assert rows(tmp_path) != first


def test_each_run_of_a_sweep_has_a_folder_of_its_own(tmp_path):
    sweep = ["--sweep.key=objective.mask.ratio", "--sweep.values=[0.3, 0.6]", "--trainer.epochs=1", "--seeds", "0", "1"]
    assert main(command(tmp_path, *sweep)) == 0
    root = tmp_path / "checkpoints" / "digits_jepa"
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.pt"))
    assert found == [
        f"objective.mask.ratio={ratio}/seed{seed}/epoch_00001.pt" for ratio in (0.3, 0.6) for seed in (0, 1)
    ]


def test_settings_that_look_alike_have_folders_of_their_own(tmp_path):
    cases = "{a b: {}, a-b: {}, '[1, 2]': {}, '[1, -2]': {}, '..': {}}"
    assert main(command(tmp_path, "--sweep.cases", cases, "--trainer.epochs=1")) == 0
    found = list((tmp_path / "checkpoints" / "digits_jepa").rglob("*.pt"))
    assert len(found) == 5 == len(list(tmp_path.rglob("*.pt")))


def test_a_folder_of_the_monitor_that_cannot_be_written_is_a_message_before_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    more = ["--monitoring.folder", str(tmp_path / "file"), "--checkpoints", "none"]
    assert main(command(tmp_path, *more, "--trainer.epochs=1000000")) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_images_are_not_explained(tmp_path, capsys):
    assert main(command(tmp_path, "--monitoring.folder", str(tmp_path), "--monitoring.explain_every=1")) == 2
    assert "monitoring.explain_every=1 needs a model of texts" in capsys.readouterr().err


def test_without_checkpoints_none_are_written(tmp_path, stop_after, capsys):
    stop_after(1)
    assert main(command(tmp_path, "--checkpoints", "none")) == 130
    assert "without checkpoints the run in progress is lost" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_is_measured_as_its_run_was(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    folder = tmp_path / "checkpoints" / "digits_jepa" / "seed0"
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(folder / "epoch_00004.pt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows(tmp_path)[0]
    assert main(["evaluate", "--checkpoint", str(folder / "epoch_00003.pt"), "--json"]) == 0
    earlier = json.loads(capsys.readouterr().out)
    assert earlier != rows(tmp_path)[0]
    assert main(["evaluate", "--checkpoint", str(folder / "epoch_00003.pt")]) == 0
    assert f"jepa: linear {earlier[0]['linear']:.4g}" in capsys.readouterr().out
    assert main(["evaluate", "--checkpoint", str(folder / "epoch_00004.pt"), "--split=validation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) != rows(tmp_path)[0]


def test_what_cannot_be_measured_is_a_message(tmp_path, capsys):
    assert main(["evaluate", "--checkpoint", str(tmp_path / "nothing.pt")]) == 1
    assert "nothing.pt" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "checkpoint" in capsys.readouterr().err
    train = digits()["train"]
    encoder = image_encoder(train["image"], EncoderConfig(patch=4, dim=16, depth=1, heads=2))
    path = Trainer(JEPA(encoder), train, TrainConfig(epochs=1)).save_checkpoint(tmp_path / "own.pt")
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    assert "was not written by `python -m jepa_lab train`" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    assert "cut short" in capsys.readouterr().err


def test_the_history_is_exported(tmp_path):
    assert main(command(tmp_path, "--trainer.evaluate_every=2", "--monitoring.folder", str(tmp_path / "m"))) == 0
    folder = tmp_path / "m" / "digits_jepa" / "seed0"
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "history.json", "losses.png"]
    history = TrainingMonitor.load(folder / "history.csv").history
    assert history["epoch"] == [1, 2, 3, 4] and None not in history["loss"]
    assert history == TrainingMonitor.load(folder / "history.json").history
    assert [value is None for value in history["validation/normalized_std"]] == [True, False, True, False]


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(tmp_path / "file")) == 1
    assert f"cannot write checkpoints into the folder {tmp_path / 'file'}" in capsys.readouterr().err
    assert main(command(tmp_path / "file", "--checkpoints", "none", "--trainer.epochs=1")) == 1
    assert "file" in capsys.readouterr().err


def test_early_stopping_and_the_best_from_the_command_line(tmp_path):
    stop = ["--trainer.evaluate_every=1", "--trainer.monitor=normalized_std", "--trainer.monitor_mode=min"]
    assert main(command(tmp_path, *stop, "--trainer.patience=1", "--trainer.epochs=12")) == 0
    assert "best.pt" in files(tmp_path)
    path = tmp_path / "checkpoints" / "digits_jepa" / "seed0"
    best, last = checkpoints.load(path / "best.pt"), checkpoints.load(checkpoints.latest(path))
    assert best["epoch"] == last["best"]["epoch"] <= last["epoch"]
    if last["epoch"] < 12:  # it stopped early, which is an end too: the same command starts anew
        assert last["waited"] == 1
    assert main(command(tmp_path, *stop, "--trainer.patience=1", "--trainer.epochs=12")) == 0


@pytest.mark.slow
def test_a_request_to_stop_is_answered_like_ctrl_c(tmp_path):
    call = [sys.executable, "-m", "jepa_lab", *command(tmp_path, "--trainer.epochs=400")]
    process = subprocess.Popen(
        call, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"}
    )
    folder, deadline = tmp_path / "checkpoints" / "digits_jepa" / "seed0", time.monotonic() + 90
    while not (folder.exists() and checkpoints.latest(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume true" in said
    done = checkpoints.load(checkpoints.latest(folder))["epoch"]
    assert 1 <= done < 400


@pytest.mark.slow
def test_two_processes_train_as_one_by_the_one_command(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(one, "--trainer.epochs=2")) == 0
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "jepa_lab"]
    done = subprocess.run(
        [*call, *command(two, "--trainer.epochs=2", "--trainer.device=cpu")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        env={**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("kNN %") == 1  # the first process reports, alone
    a, b = (checkpoints.load(f / "checkpoints/digits_jepa/seed0/epoch_00002.pt")["objective"] for f in (one, two))
    for name, value in a.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-4)


def test_a_sweep_does_not_keep_the_models_of_its_past_runs(tmp_path, monkeypatch):
    models, alive = [], []
    fit = Trainer.fit

    def watched(self):
        alive.append(sum(model() is not None for model in models))
        models.append(weakref.ref(self.objective))
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", watched)
    gc.disable()  # it comes when it likes
    try:
        assert main(command(tmp_path, "--trainer.epochs=1", "--controls=[]", "--seeds", "0", "1")) == 0
    finally:
        gc.enable()
    assert alive == [0, 0]


def test_results_go_on_under_settings_that_change_no_number(tmp_path, capsys, monkeypatch):
    assert main(command(tmp_path, "--trainer.epochs=1")) == 0
    monkeypatch.setattr(Trainer, "fit", None)  # whoever trains again fails
    same = ["--trainer.epochs=1", "--resume=true", "--trainer.keep_last=3", "--monitoring.figures=false"]
    assert main(command(tmp_path, *same)) == 0
    assert main(command(tmp_path, *same, "--trainer.lr=0.5")) == 1
    assert "differs in trainer.lr: 0.002 -> 0.5. Run without" in capsys.readouterr().err


def test_a_broken_results_file_is_named(tmp_path, capsys):
    path = tmp_path / "digits_jepa.json"
    for content in ('{"name":', "[]", "{}"):
        path.write_text(content)
        assert main(command(tmp_path, "--resume=true")) == 1
        assert f"{path} is not a results file" in capsys.readouterr().err
        assert path.read_text() == content


def test_a_checkpoint_of_another_model_is_a_message(tmp_path, capsys):
    """The configuration in it makes this model no more: a corpus with other topics, say."""
    assert main(command(tmp_path, "--trainer.epochs=1")) == 0
    path = tmp_path / "checkpoints" / "digits_jepa" / "seed0" / "epoch_00001.pt"
    content = checkpoints.load(path)
    weights = content["objective"]
    name = next(key for key, value in weights.items() if isinstance(value, torch.Tensor) and value.ndim == 2)
    weights[name] = weights[name][:-1]
    checkpoints.save(path, content)
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"the checkpoint {path} does not fit the model" in said and name in said
