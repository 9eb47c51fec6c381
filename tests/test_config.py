"""Configurations and the command line: what is unknown or wrong is an error that names the key."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError

from jepa_lab import experiment
from jepa_lab.__main__ import main
from jepa_lab.config import SweepConfig, build, parse, resolve
from jepa_lab.objectives import ContrastiveConfig, JEPAConfig

CONFIGS = sorted((Path(__file__).parent.parent / "jepa_lab" / "configs").glob("*.yaml"))
JEPA_YAML = str(next(path for path in CONFIGS if path.stem == "digits_jepa"))
CONTRASTIVE_YAML = str(next(path for path in CONFIGS if path.stem == "digits_contrastive"))
FAST = ["--trainer.epochs", "1", "--seeds", "0", "1", "--encoder.depth", "1", "--tokens", "false"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves_and_is_named_after_its_file(path):
    config = parse(["--config", str(path)])
    assert config.name == path.stem


def test_values_reach_the_dataclasses():
    parts = build(parse(["--config", JEPA_YAML, "--objective.mask.ratio=0.3", "--trainer.betas=[0.5, 0.6]"]))
    assert isinstance(parts.objective, JEPAConfig)
    assert parts.objective.mask.ratio == 0.3 and parts.trainer.betas == (0.5, 0.6)
    assert parts.objective.momentum.start == 0.99
    contrastive = build(parse(["--config", CONTRASTIVE_YAML])).objective
    assert isinstance(contrastive, ContrastiveConfig) and contrastive.augmentation.crop == (0.6, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective.temperature", "0.1"], "objective.temperature"),  # a key of another objective
        (["--trainer.epoch", "2"], "trainer.epoch"),
        (["--trainer.epochs", "many"], "trainer.epochs"),
        (["--trainer.epochs", "0"], "trainer.epochs must be at least 1, got 0"),
        (["--objective.mask.ratio", "1.5"], "mask.ratio"),
        (["--objective.mask.kind", "checkers"], "objective.mask.kind"),
        (["--data.name", "imagenet"], "data.name"),
        (
            ["--objective.name", "dino"],
            "known: barlow_twins, byol, c_jepa, c_jepa_vicreg, contrastive, h_jepa, jasper, ",
        ),
        (["--sweep.key", "trainer.epochs", "--sweep.values", "[1, 0]"], "trainer.epochs must be at least 1"),
        (["--sweep.key", "trainer.epochs"], "sweep.values must hold at least one value"),
        (["--controls", "[oracle]"], "controls"),
        (["--data.settings", "size: 3"], "data.settings of digits: got an unexpected keyword argument 'size'"),
        (["--sweep.key", "no.such", "--sweep.values", "[1]"], "no.such"),
        (["--sweep.key", "a, b", "--sweep.values", "[1]"], "sweep.values: 1 must have 2 entries"),
    ],
)
def test_errors_name_the_key(arguments, message, capsys):
    with pytest.raises((ArgumentError, ValueError), match=message.replace("[", r"\[")):
        parse(["--config", JEPA_YAML, *arguments])
    assert main(["train", "--config", JEPA_YAML, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_keys_in_the_file_are_errors(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("name: typo\nobjective: {name: contrastive, temprature: 3}\n")
    with pytest.raises(ArgumentError, match="temprature"):
        parse(["--config", str(path)])
    path.write_text("name: typo\nobjectives: {name: jepa}\n")
    with pytest.raises(ArgumentError, match="objectives"):
        parse(["--config", str(path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("objective: jepa\n", "objective in x.yaml must be a section, `objective: {name: ...}`, got 'jepa'"),
        ("objective: {name: [jepa]}\n", "objective.name in x.yaml must be the name of an objective, got ['jepa']"),
        ("objective:\n", "objective in x.yaml must be a section of settings, got None"),
        ("name: x\ntrainer: 3\n", "trainer in x.yaml must be a section of settings, got 3"),
        ("name: [x\n", "x.yaml is not a YAML file: while parsing a flow sequence"),
        ("- name\n", "x.yaml must hold settings, lines such as `name: my_run`, got ['name']"),
        ("", "x.yaml must hold settings"),
        ("name: x\ntrainer: {epochs: [1]}\n", "trainer.epochs"),
        ("name: x\ntrainer: {patience: 2}\n", "trainer.patience=2 counts evaluations without a better trainer.monitor"),
        (None, "No such file or directory: 'x.yaml'"),
    ],
)
def test_a_file_that_does_not_hold_settings_is_a_message(content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.yaml").write_text(content)
    assert main(["train", "--config", "x.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_sweep_overrides():
    assert SweepConfig().overrides() == {"": []}
    assert list(SweepConfig("a.b", [1, "x"]).overrides().values()) == [["--a.b=1"], ["--a.b=x"]]
    assert list(SweepConfig("a, b", [[1, 2]]).overrides().values()) == [["--a=1", "--b=2"]]
    cases = {"one": {"a": [0.5, 1], "b": False}, "two": None}
    assert SweepConfig(cases=cases).overrides() == {"one": ["--a=[0.5, 1]", "--b=false"], "two": []}
    with pytest.raises(ValueError, match="give either key"):
        SweepConfig("a", [1], {"one": {}}).overrides()


@pytest.mark.slow
def test_a_run_writes_what_it_did_and_repeats(tmp_path, capsys):
    sweep = ["--sweep.key", "objective.mask.ratio", "--sweep.values", "[0.3, 0.6]"]
    arguments = ["train", "--config", JEPA_YAML, *FAST, *sweep, "--split", "validation", "--controls", "[chance]"]
    results = []
    for folder in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / folder)]) == 0
        results.append(json.loads((tmp_path / folder / "digits_jepa.json").read_text()))
        assert not list((tmp_path / folder).glob("*.part"))
    assert "digits_jepa.json" in capsys.readouterr().out
    one, two = results
    assert one["config"] == two["config"] == resolve(JEPA_YAML, one["overrides"])
    assert "--out" not in one["overrides"] and "--trainer.epochs" in one["overrides"]
    assert [(r["seed"], r["overrides"]) for r in one["runs"]] == [
        (seed, [f"--objective.mask.ratio={ratio}"]) for ratio in (0.3, 0.6) for seed in (0, 1)
    ]
    assert [r["rows"] for r in one["runs"]] == [r["rows"] for r in two["runs"]]
    assert [row["method"] for row in one["runs"][0]["rows"]] == ["chance", "jepa"]
    scores = {r["rows"][-1]["linear"] for r in one["runs"]}
    assert len(scores) > 1  # seeds and settings make a difference
    assert experiment.load_result("digits_jepa", tmp_path / "a") == one
    with pytest.raises(FileNotFoundError, match=r"make it with `python -m jepa_lab train --config .*nothing\.yaml`"):
        experiment.load_result("nothing", tmp_path)


@pytest.mark.slow
def test_cases_may_name_another_objective_and_controls_are_run_once(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(
        "name: two\nobjective: {name: jepa}\ntrainer: {epochs: 2, evaluate_every: 1}\nencoder: {depth: 1}\n"
        "sweep:\n  cases:\n    JEPA: {}\n    views: {objective.name: simsiam, objective.augmentation: {noise: 0.1}}\n"
        "seeds: [0, 1]\ntokens: false\ncontrols: [chance]\nprobe_rows: 300\n"
    )
    assert main(["train", "--config", str(path), "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "two.json").read_text())["runs"]
    assert [(run["case"], run["seed"]) for run in runs] == [("JEPA", 0), ("JEPA", 1), ("views", 0), ("views", 1)]
    methods = [[row["method"] for row in run["rows"]] for run in runs]
    assert methods == [["chance", "jepa"]] * 2 + [["simsiam"]] * 2
    for run in runs:
        curves = run["curves"]
        assert curves["step"] == [0, 15, 30] and curves["loss"][0] is None and None not in curves["loss"][1:]
        assert len(set(curves["normalized_std"])) == 3  # it trains, and each reading is its own
    bad = ["--sweep.cases", "{x: {objective.temperature: 1}}"]
    with pytest.raises(ArgumentError, match="temperature"):
        parse(["--config", str(path), *bad])


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    sweep = ["--sweep.key", "objective.mask.ratio", "--sweep.values", "[0.3, 0.6]"]
    arguments = ["train", "--config", JEPA_YAML, *FAST, *sweep, "--controls", "[chance]", "--out", str(tmp_path)]
    path, trained, run_seed = tmp_path / "digits_jepa.json", [], experiment.run_seed

    def counting(config, seed, named):
        if len(trained) == 3:
            raise FloatingPointError("the fourth run fails")
        trained.append(seed)
        return run_seed(config, seed, named)

    monkeypatch.setattr(experiment, "run_seed", counting)
    assert main(arguments) == 1
    partial = json.loads(path.read_text())["runs"]
    assert len(partial) == 3
    monkeypatch.setattr(experiment, "run_seed", lambda c, s, n: trained.append(s) or run_seed(c, s, n))
    assert main([*arguments, "--resume", "true"]) == 0
    resumed = json.loads(path.read_text())
    assert resumed["runs"][:3] == partial and len(resumed["runs"]) == 4 and len(trained) == 4
    assert "--resume" not in resumed["overrides"] and "resume" not in resumed["config"]
    assert main(arguments) == 0  # without --resume all of it is made anew, and is the same
    again = json.loads(path.read_text())
    assert [run["rows"] for run in again["runs"]] == [run["rows"] for run in resumed["runs"]]

    more = [a if a != "[0.3, 0.6]" else "[0.2, 0.3, 0.6]" for a in arguments]  # a new value before the old ones
    trained[:] = [0, 0]
    monkeypatch.setattr(experiment, "run_seed", counting)
    assert main([*more, "--resume", "true"]) == 1  # its second seed fails
    kept = json.loads(path.read_text())["runs"]
    assert len(kept) == 5 and [run["rows"] for run in kept[1:]] == [run["rows"] for run in again["runs"]]

    capsys.readouterr()
    assert main([*arguments, "--resume", "true", "--trainer.lr", "0.001"]) == 1
    assert "differs in trainer.lr: 0.002 -> 0.001. Run without --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_as_a_user_types_it(tmp_path):
    def run(*arguments):
        call = [sys.executable, "-m", "jepa_lab", *arguments]
        return subprocess.run(call, capture_output=True, text=True, cwd=Path(JEPA_YAML).parent.parent.parent)

    printed = run("train", "--config", JEPA_YAML, "--trainer.epochs", "7", "--print_config")
    assert yaml.safe_load(printed.stdout)["trainer"]["epochs"] == 7
    done = run("train", "--config", CONTRASTIVE_YAML, *FAST, "--controls", "[]", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits_contrastive.json").exists()


def test_missing_data_is_a_message_and_not_a_traceback(tmp_path, capsys):
    data = ["--data.name", "fashion_mnist", "--data.settings", f"root: {tmp_path}"]
    assert main(["train", "--config", JEPA_YAML, *data]) == 1
    assert "github.com/zalandoresearch/fashion-mnist" in capsys.readouterr().err


def test_settings_that_do_not_fit_the_data_are_a_message(tmp_path, capsys):
    assert main(["train", "--config", JEPA_YAML, "--encoder.patch", "3", "--out", str(tmp_path)]) == 1
    assert "patch must divide the image size 8 x 8, got patch=3" in capsys.readouterr().err


def test_help_and_unknown_commands(capsys):
    assert main([]) == main(["--help"]) == 0
    assert "--print_config" in capsys.readouterr().out
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = experiment.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        experiment.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
