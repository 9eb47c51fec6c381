"""Checkpoints: whole or not there, never executed, refused where they do not belong; a resumed run is the same run."""

import errno
import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_lab import checkpoints
from jepa_lab.checkpoints import CheckpointError, differences, latest, load, prune, ready, save
from jepa_lab.data.images import digits
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA, JEPAConfig, MomentumConfig, Supervised
from jepa_lab.training import TrainConfig, Trainer, seed_all, shuffled_batches

TINY = EncoderConfig(patch=4, dim=16, depth=1, heads=2)
FEW = {key: value[:96] for key, value in digits()["train"].items()}


def jepa(seed=0, momentum=0.9, **settings):
    """A run with everything random that there is: masks from the objective's generator, dropout from torch's."""
    folder, evaluate = settings.pop("checkpoints", None), settings.pop("evaluate", None)
    seed_all(seed)
    encoder = image_encoder(FEW["image"], TINY)
    encoder.transformer.norm = nn.Sequential(encoder.transformer.norm, nn.Dropout(0.1))
    objective = JEPA(encoder, JEPAConfig(momentum=MomentumConfig(start=momentum)), seed=seed)
    config = TrainConfig(**{"epochs": 4, "batch_size": 32, "warmup_steps": 5, "seed": seed} | settings)
    return Trainer(objective, FEW, config, evaluate=evaluate, checkpoints=folder)


def fingerprint(trainer):
    """A hash of all that a run has learned and would do next."""
    content = [trainer.objective.state_dict(), trainer.optimizer.state_dict()["state"], torch.get_rng_state()]
    content += [trainer.history, trainer.evaluations, trainer.epoch, trainer.step, trainer.best, trainer.waited]
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(content)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- files


def test_what_is_saved_is_what_is_loaded(tmp_path):
    content = {"weights": {"a.b": torch.randn(3, dtype=torch.float64)}, "n": 3, "names": ["x"], "nothing": None}
    path = save(tmp_path / "new" / "folder" / "epoch_00001.pt", content)
    back = load(path)
    assert torch.equal(back["weights"]["a.b"], content["weights"]["a.b"])
    assert {key: back[key] for key in ("n", "names", "nothing")} == {"n": 3, "names": ["x"], "nothing": None}


def test_a_truncated_or_damaged_file_is_refused_by_name(tmp_path):
    path = save(tmp_path / "epoch_00001.pt", {"weights": torch.arange(400.0)})
    whole = path.read_bytes()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is cut short"):
            load(path)
    middle = whole.index(torch.tensor(200.0).numpy().tobytes())
    path.write_bytes(whole[:middle] + b"\x01" + whole[middle + 1 :])  # one byte of a weight
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is damaged: wrong checksum"):
        load(path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_extra_pickle_inside_is_refused_and_not_run(tmp_path):
    path = tmp_path / "epoch_00001.pt"
    torch.save({"format": 1, "weights": torch.zeros(2), "extra": Bomb(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is refused: it holds a pickle"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*none\.pt: FileNotFoundError"):
        load(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="IsADirectoryError"):
        load(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt is not a checkpoint of jepa_lab"):
        load(tmp_path / "list.pt")
    torch.save({"format": checkpoints.FORMAT + 1}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match=r"new\.pt has format 2; this version of jepa_lab reads up to 1"):
        load(tmp_path / "new.pt")


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "best.pt", {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr("jepa_lab.files.os.fsync", no_space)
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}: OSError: No space left on device"):
            save(path, {"n": 2})
    assert load(path)["n"] == 1 and os.listdir(tmp_path) == ["best.pt"]


def test_a_disk_that_takes_only_part_of_the_file_leaves_the_old_one(tmp_path):
    """Without simulation: the system refuses to let any file grow beyond 4 kB."""
    path = save(tmp_path / "best.pt", {"n": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save(path, {"weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load(path)["n"] == 1 and os.listdir(tmp_path) == ["best.pt"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    trainer = jepa(checkpoints=blocked)
    with pytest.raises(CheckpointError, match=rf"folder {re.escape(str(blocked))}: FileExistsError"):
        trainer.fit()
    assert trainer.step == 0

    def denied(*arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "write_bytes", denied)  # a folder without the right to write; root would have it
    with pytest.raises(
        CheckpointError, match=rf"folder {re.escape(str(tmp_path))}: PermissionError: Permission denied"
    ):
        ready(tmp_path)


def test_latest_and_prune_look_at_whole_checkpoints_only(tmp_path):
    assert latest(tmp_path / "nowhere") is None and latest(tmp_path) is None
    names = ["epoch_00002.pt", "epoch_00010.pt", "epoch_00009.pt", "epoch_100000.pt", "best.pt", "notes.txt"]
    for name in [*names, "epoch_200000.pt.77.part", "epoch_00011.pt.bak"]:
        (tmp_path / name).write_bytes(b"")
    assert latest(tmp_path).name == "epoch_100000.pt"
    assert [path.name for path in ready(tmp_path)] == ["epoch_200000.pt.77.part"]
    gone = prune(tmp_path, 2, keep=["epoch_00002.pt"])
    assert [path.name for path in gone] == ["epoch_00009.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "epoch_00011.pt.bak"} - {"epoch_00009.pt"}
    with pytest.raises(ValueError, match="keep_last must be at least 1, got 0"):
        prune(tmp_path, 0)


def test_differences_name_the_setting_and_both_values():
    old = {"a": {"b": 1, "c": [1]}, "d": 1, "gone": {}}
    new = {"a": {"b": 2, "c": [1]}, "d": 2, "e": {"f": None}}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "d: 1 -> 2",
        "e.f: (not set) -> None",
        "gone: {} -> (not set)",
    ]
    assert differences(old, new, ["a", "d", "gone", "e.f"]) == []
    assert differences({"ab": 1}, {"ab": 2}, ["a"]) == ["ab: 1 -> 2"]


# ------------------------------------------------------------------------------------------------- resume


def test_a_resumed_run_is_the_same_run_to_the_last_bit(tmp_path):
    scores = iter([0.5, 0.7, 0.6, 0.4] * 2)
    watch = {"evaluate": lambda objective: {"score": next(scores), "noise": torch.rand(()).item()}}
    watch |= {"evaluate_every": 1, "monitor": "score", "patience": 3}
    whole = jepa(**watch)
    whole.fit()
    expected = fingerprint(whole)
    assert whole.best == {"epoch": 2, "step": 6, "value": 0.7}

    first = jepa(**watch)
    for epoch in range(3):
        first.train_epoch(epoch)
        first.validate()
    path = first.save_checkpoint(tmp_path / "x.pt")
    torch.randn(100)  # another process would have drawn other numbers by now
    second = jepa(**watch)
    second.load_checkpoint(path)
    assert second.epoch == 3 and second.step == 9 and second.core_seconds == first.core_seconds > 0
    second.fit()
    assert second.history == whole.history and second.evaluations == whole.evaluations
    assert fingerprint(second) == expected


def test_what_is_random_makes_a_difference():
    """Else the test above would show nothing."""
    runs = [jepa() for _ in range(3)]
    runs[1].objective.generator.manual_seed(5)  # other masks
    for i, run in enumerate(runs):
        run.train_epoch(0)
        if i == 2:
            torch.randn(1)  # other dropout
        run.train_epoch(1)
    assert len({tuple(run.history["loss"]) for run in runs}) == 3


def test_an_epoch_returns_the_means_over_its_own_steps():
    history = jepa().fit()
    trainer = jepa()  # only now: both draw from torch's generator
    for epoch in range(4):
        means = trainer.train_epoch(epoch)
        assert means == {
            name: sum(values[3 * epoch : 3 * epoch + 3]) / 3 for name, values in history.items() if name != "step"
        }
    assert trainer.history == history and trainer.evaluations == {}


class Drawn:
    """Batches with a state of their own: every epoch takes the rows after those of the one before."""

    def __init__(self):
        self.at = 0

    def __call__(self, epoch):
        rows = slice(self.at % 64, self.at % 64 + 32)
        self.at += 32
        return [{key: value[rows] for key, value in FEW.items()}]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_batches_with_a_state_go_on_where_they_were(tmp_path):
    def run():
        seed_all(0)
        return Trainer(Supervised(image_encoder(FEW["image"], TINY)), Drawn(), TrainConfig(epochs=3))

    whole = run()
    whole.fit()
    part = run()
    part.train_epoch(0)
    part.save_checkpoint(tmp_path / "x.pt")
    rest = run()
    rest.load_checkpoint(tmp_path / "x.pt")
    assert rest.fit() == whole.history


def test_fit_writes_the_last_checkpoints_and_the_best_and_none_without_a_folder(tmp_path, monkeypatch):
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1])
    trainer = jepa(
        epochs=5,
        checkpoints=tmp_path / "run",
        evaluate=lambda objective: {"score": next(scores)},
        evaluate_every=1,
        monitor="score",
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "epoch_00099.pt.1.part").write_bytes(b"half of a checkpoint")
    trainer.fit()
    assert sorted(os.listdir(tmp_path / "run")) == ["best.pt", "epoch_00004.pt", "epoch_00005.pt"]
    assert load(tmp_path / "run" / "best.pt")["epoch"] == 2
    monkeypatch.chdir(tmp_path)
    jepa(epochs=1).fit()
    assert os.listdir(tmp_path) == ["run"]


def test_checkpoint_every_thins_them_out_but_for_the_last(tmp_path):
    jepa(epochs=5, checkpoint_every=2, keep_last=9, checkpoints=tmp_path / "two").fit()
    assert sorted(os.listdir(tmp_path / "two")) == ["epoch_00002.pt", "epoch_00004.pt", "epoch_00005.pt"]
    jepa(epochs=3, checkpoint_every=0, checkpoints=tmp_path / "end").fit()
    assert os.listdir(tmp_path / "end") == ["epoch_00003.pt"]


def test_a_new_run_does_not_write_between_the_checkpoints_of_another(tmp_path):
    jepa(epochs=2, checkpoints=tmp_path).fit()
    with pytest.raises(CheckpointError, match=r"holds checkpoints of another run, the latest is epoch_00002\.pt"):
        jepa(epochs=2, seed=1, checkpoints=tmp_path).fit()


def test_a_checkpoint_of_other_settings_is_refused_by_their_names(tmp_path):
    path = jepa().save_checkpoint(tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as error:
        jepa(lr=0.5, epochs=9, momentum=0.8).load_checkpoint(path)
    for part in (
        str(path),
        "trainer.lr: 0.002 -> 0.5",
        "trainer.epochs: 4 -> 9",
        "objective.momentum.start: 0.9 -> 0.8",
    ):
        assert part in str(error.value)
    more = Trainer(jepa().objective, {key: value[:64] for key, value in FEW.items()}, jepa().config)
    with pytest.raises(CheckpointError, match=r"batches.image: \[96, 1, 8, 8\] -> \[64, 1, 8, 8\]"):
        more.load_checkpoint(path)
    other = jepa(threads=2, log_every=3, keep_last=7, checkpoint_every=2, device="cpu")
    other.load_checkpoint(path)  # none of these changes the result


def test_settings_of_the_run_are_compared_too_but_not_its_name(tmp_path):
    def run(**settings):
        return Trainer(jepa().objective, FEW, jepa().config, settings=settings)

    path = run(data={"name": "digits"}, run={"name": "a"}).save_checkpoint(tmp_path / "x.pt")
    run(data={"name": "digits"}, run={"name": "b"}).load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"data.name: digits -> sprites"):
        run(data={"name": "sprites"}).load_checkpoint(path)


def test_a_checkpoint_from_before_a_setting_existed_has_its_default(tmp_path):
    path = jepa().save_checkpoint(tmp_path / "x.pt")
    content = load(path)
    del content["settings"]["trainer"]["precision"]
    save(path, content)
    jepa().load_checkpoint(path)
    del content["settings"]["trainer"]["epochs"]  # 100 by default
    save(path, content)
    with pytest.raises(CheckpointError, match=r"trainer\.epochs: 100 -> 4"):
        jepa().load_checkpoint(path)


def test_weights_of_another_model_are_refused(tmp_path):
    path = jepa().save_checkpoint(tmp_path / "x.pt")
    wide = jepa()
    wide.objective.encoder.transformer.norm.append(nn.Linear(16, 16))
    with pytest.raises(CheckpointError, match=r"(?s)x\.pt does not fit this model.*norm\.2\.weight"):
        wide.load_checkpoint(path)


# ------------------------------------------------------------------------------------------------- faults


def test_a_full_disk_in_mid_training_loses_nothing(tmp_path, monkeypatch):
    whole = jepa()
    whole.fit()
    expected = fingerprint(whole)
    trainer, writes = jepa(checkpoints=tmp_path), []

    def third_fails(descriptor):
        writes.append(descriptor)
        if len(writes) == 3:
            no_space()

    monkeypatch.setattr("jepa_lab.files.os.fsync", third_fails)
    with pytest.raises(CheckpointError, match=r"epoch_00003\.pt: OSError: No space left on device"):
        trainer.fit()
    assert sorted(os.listdir(tmp_path)) == ["epoch_00001.pt", "epoch_00002.pt"]
    again = jepa(checkpoints=tmp_path)
    again.load_checkpoint(latest(tmp_path))  # the old one is there and can be used
    again.fit()
    assert fingerprint(again) == expected


def test_after_a_full_disk_the_same_trainer_goes_on(tmp_path, monkeypatch):
    whole = jepa()
    whole.fit()
    expected = fingerprint(whole)
    for failing in (2, 4):  # in the middle, and the very last
        trainer, writes = jepa(checkpoints=tmp_path / str(failing)), []

        def fails(descriptor, failing=failing, writes=writes):
            writes.append(descriptor)
            if len(writes) == failing:
                no_space()

        with monkeypatch.context() as patch:
            patch.setattr("jepa_lab.files.os.fsync", fails)
            with pytest.raises(CheckpointError, match="No space left"):
                trainer.fit()
            assert trainer.epoch == failing
            trainer.fit()
        assert fingerprint(trainer) == expected
        assert latest(tmp_path / str(failing)).name == "epoch_00004.pt"


def test_a_run_that_diverges_does_not_overwrite_the_last_good_checkpoint(tmp_path):
    trainer = jepa(checkpoints=tmp_path)
    step = trainer.objective.after_step
    name, weight = next(iter(trainer.objective.predictor.named_parameters()))

    def poison(progress):
        step(progress)
        if trainer.step == 8:  # in the last step of the third epoch, whose own loss was still finite
            weight.data.view(-1)[0] = torch.nan

    trainer.objective.after_step = poison
    with pytest.raises(FloatingPointError, match=rf"1 weights are not finite after step 9, predictor\.{name}"):
        trainer.fit()
    assert latest(tmp_path).name == "epoch_00002.pt"
    jepa().load_checkpoint(latest(tmp_path))


def test_ctrl_c_leaves_the_last_whole_epoch(tmp_path):
    whole = jepa()
    whole.fit()
    expected = fingerprint(whole)
    trainer = jepa(checkpoints=tmp_path, checkpoint_every=3)
    step = trainer.objective.before_step

    def interrupt(progress):
        step(progress)
        if progress == pytest.approx((2 + 1 / 3) / 4):
            raise KeyboardInterrupt

    trainer.objective.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert os.listdir(tmp_path) == ["epoch_00002.pt"]  # none was due before the third epoch
    for call in (trainer.fit, lambda: trainer.train_epoch(2), lambda: trainer.save_checkpoint(tmp_path / "x.pt")):
        with pytest.raises(RuntimeError, match="interrupted in the middle of epoch 3"):
            call()
    trainer.objective.before_step = step
    trainer.load_checkpoint(latest(tmp_path))
    trainer.fit()
    assert fingerprint(trainer) == expected


# ------------------------------------------------------------------------------------------------- early stopping


def watched(scores, **settings):
    values = iter(scores)
    weights = []

    def evaluate(objective):
        weights.append(objective.encoder.tokenizer.embed.weight.detach().clone())
        return {"score": next(values)}

    settings = {"epochs": len(scores), "evaluate_every": 1, "monitor": "score"} | settings
    return jepa(evaluate=evaluate, **settings), weights


@pytest.mark.parametrize("mode", ["max", "min"])
def test_training_stops_when_nothing_gets_better_and_the_best_weights_remain(mode):
    sign = 1 if mode == "max" else -1
    scores = [sign * x for x in (1.0, 3.0, 2.0, 3.0, 1.0, 9.0)]
    trainer, weights = watched(scores, patience=3, monitor_mode=mode)
    trainer.fit()
    assert trainer.epoch == 5 and trainer.stopped  # an equal score is not a better one
    assert trainer.best == {"epoch": 2, "step": 6, "value": scores[1]}
    assert torch.equal(trainer.objective.encoder.tokenizer.embed.weight, weights[1])
    last, weights = watched(scores, patience=3, monitor_mode=mode, restore_best=False)
    last.fit()
    assert torch.equal(last.objective.encoder.tokenizer.embed.weight, weights[4])


def test_a_run_that_stops_early_leaves_a_checkpoint_of_its_end(tmp_path):
    trainer, _ = watched([1.0, 0.5, 0.4, 0.3], patience=2, checkpoint_every=0, checkpoints=tmp_path)
    trainer.fit()
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "epoch_00003.pt"]


def test_without_patience_all_epochs_run_and_nan_is_never_the_best():
    trainer, weights = watched([float("nan"), 0.5, 0.1, 0.2])
    trainer.fit()
    assert trainer.epoch == 4 and trainer.best["epoch"] == 2
    assert torch.equal(trainer.objective.encoder.tokenizer.embed.weight, weights[1])


def test_a_resumed_run_stops_where_the_whole_one_did_with_the_same_best_weights(tmp_path):
    scores = [1.0, 3.0, 2.0, 2.0, 2.0, 9.0]
    whole, _ = watched(scores, patience=3, checkpoints=tmp_path / "a")
    whole.fit()
    part, _ = watched(scores, patience=3, checkpoints=tmp_path / "b")
    for epoch in range(3):
        part.train_epoch(epoch)
        part.validate()
    path = part.save_checkpoint(tmp_path / "b" / "epoch_00003.pt")
    rest, _ = watched(scores[3:], patience=3, epochs=6, checkpoints=tmp_path / "b")
    rest.load_checkpoint(path)
    rest.fit()
    assert rest.epoch == whole.epoch == 5 and fingerprint(rest) == fingerprint(whole)
    done, _ = watched([], patience=3, epochs=6, checkpoints=tmp_path / "b")
    done.load_checkpoint(latest(tmp_path / "b"))
    done.fit()  # has stopped already: nothing runs, and the best weights are put in place
    assert done.step == rest.step
    for a, b in zip(done.objective.parameters(), whole.objective.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_metric_that_does_not_exist_is_named():
    trainer, _ = watched([1.0], monitor="recall")
    with pytest.raises(ValueError, match=r"trainer\.monitor='recall' is not a metric of the evaluation; known: score"):
        trainer.fit()
    with pytest.raises(ValueError, match=r"trainer\.monitor='x' names a metric of evaluate, but there is no evaluate"):
        jepa(monitor="x").fit()
    with pytest.raises(ValueError, match="give both monitor and evaluate_every"):
        TrainConfig(patience=2, monitor="x")
    with pytest.raises(ValueError, match="which was not given"):
        jepa().validate()


# ------------------------------------------------------------------------------------------------- kill -9

RUN = """
import os, signal, sys
sys.path[:0] = {paths!r}
import test_checkpoints as t
from jepa_lab import checkpoints, files

def torn(path, content):
    # The third checkpoint: half of it is on the disk when the process is killed, as hard as there is.
    part = path.with_name(f"{{path.name}}.{{os.getpid()}}.part")
    if path.name == "epoch_00003.pt" and {kill!r}:
        with part.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)
    return files.write_atomic(path, content)

checkpoints.write_atomic = torn
trainer = t.jepa(checkpoints={folder!r})
if latest := checkpoints.latest({folder!r}):
    trainer.load_checkpoint(latest)
trainer.fit()
print(t.fingerprint(trainer), hash(tuple(trainer.history["loss"])))
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_writing_and_resumed_it_is_the_same_run(tmp_path):
    here = Path(__file__).resolve().parent

    def run(folder, kill):
        code = textwrap.dedent(RUN).format(paths=[str(here), str(here.parent)], folder=str(folder), kill=kill)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)

    whole = jepa()
    whole.fit()
    killed = run(tmp_path / "killed", kill=True)
    assert killed.returncode == -signal.SIGKILL and killed.stdout == ""
    left = sorted(os.listdir(tmp_path / "killed"))
    assert left[:2] == ["epoch_00001.pt", "epoch_00002.pt"] and re.fullmatch(r"epoch_00003\.pt\.\d+\.part", left[2])
    resumed = run(tmp_path / "killed", kill=False)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split() == [fingerprint(whole), str(hash(tuple(whole.history["loss"])))]
    assert sorted(os.listdir(tmp_path / "killed")) == ["epoch_00003.pt", "epoch_00004.pt"]


def test_the_order_of_the_data_needs_no_state():
    batches = shuffled_batches({"x": torch.arange(8)}, 2, seed=3)
    later = [batch["x"].tolist() for batch in batches(5)]
    assert later == [batch["x"].tolist() for batch in shuffled_batches({"x": torch.arange(8)}, 2, seed=3)(5)]
