"""Clinical runs: what probes read, fine-tuning and training from scratch, the one command; no label is leaked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError
from sklearn.metrics import roc_auc_score

from jepa_lab.__main__ import main
from jepa_lab.clinical_probes import (
    ClinicalTask,
    ProbeConfig,
    answers,
    asked,
    death_scores,
    explained,
    judged,
    rank_average,
    represented,
    some_labels,
)
from jepa_lab.clinical_rows import CONTROLS, bar, control_rows, frozen_rows, tuned_rows
from jepa_lab.config import build, family, parse, repetition, resolve, stored
from jepa_lab.data.clinical import PARAMETERS
from jepa_lab.data.clinical_batches import Scale, in_order
from jepa_lab.data.clinical_generator import GeneratorConfig, generate, write_records
from jepa_lab.experiment import evaluate
from jepa_lab.families import FAMILIES, clinical, family_name
from jepa_lab.fine_tuning import FineTuneConfig, FineTuned, LabelledBatches, fine_tune, scores
from jepa_lab.flops import step_flops
from jepa_lab.nets import SeriesEncoderConfig, series_encoder
from jepa_lab.objectives import JEPA, build_objective
from tests.test_clinical_batches import of_lengths

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "jepa_lab" / "configs"
SHORT = FineTuneConfig(steps=3, few_steps=2, batch_size=8, observations=8)
PROBE = ProbeConfig(observations=12, labels=(1.0, 0.2))


def make_encoder():
    return series_encoder(len(PARAMETERS), SeriesEncoderConfig(dim=8, depth=1, heads=2))


@pytest.fixture(scope="module")
def task():
    config = GeneratorConfig(channels=("HR", "Temp", "Lactate"), two_sided=0.0, density=0.15, present=0.9)
    records = generate(260, 3, config)
    train, held = records.take(torch.arange(200)), records.take(torch.arange(200, 260))
    scale = Scale.fit(train)
    return ClinicalTask.of(scale(train), scale(held))


# --- reading out -----------------------------------------------------------------------------------------------------


def test_features_are_mean_maximum_and_deviation_of_the_real_tokens(task):
    objective = JEPA(make_encoder())
    found = represented(objective, task.held, 6)
    batch = next(in_order(task.held, 6))
    tokens = objective.represent(batch, "tokens")
    for i in range(20):
        h = tokens[i][batch["valid"][i]]
        if len(h):
            expected = torch.cat([h.mean(0), h.amax(0), h.std(0, correction=0)])
            torch.testing.assert_close(found.all[i], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.mean[i], h.mean(0), rtol=1e-4, atol=1e-5)
    empty = represented(objective, of_lengths([0, 3]), 6)
    assert (empty.all[0] == 0).all() and empty.all.isfinite().all() and (empty.mean[1] != 0).any()


def test_few_labels_are_nested_stratified_and_hold_two_deaths():
    label = (torch.arange(1000) % 8 == 0).long()
    ten, one = some_labels(label, 0.1, 3), some_labels(label, 0.01, 3)
    assert len(ten) == 100 and abs(int(label[ten].sum()) - 12) <= 1
    assert set(one.tolist()) <= set(ten.tolist()) and label[one].sum() >= 2
    assert torch.equal(some_labels(label, 0.1, 3), ten) and not torch.equal(some_labels(label, 0.1, 4), ten)
    assert torch.equal(some_labels(label, 1.0, 0), torch.arange(1000))
    rare = torch.zeros(1000, dtype=torch.long)
    rare[[5, 500]] = 1
    assert rare[some_labels(rare, 0.01, 0)].sum() == 2  # as many as it takes


def test_scores_of_death_find_a_signal():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=g)
    label = (torch.rand(400, generator=g) < torch.sigmoid(2 * x[:, 0] - 1)).long()
    found = death_scores(x[:300], label[:300], x[300:])
    assert roc_auc_score(label[300:], found) > 0.8
    single = torch.tensor([1] + [0] * 19)
    assert np.isfinite(death_scores(x[:20], single, x[20:40])).all()  # too few deaths to cross-validate


def test_rank_averages_forget_the_scales():
    a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1000.0, -5.0, 2000.0, 7.0])
    assert rank_average(a, b).tolist() == [2.0, 1.5, 3.5, 3.0]
    assert np.array_equal(rank_average(a, b), rank_average(10 * a + 3, np.exp(b / 1000)))
    assert rank_average(np.array([1.0, 1.0, 0.0])).tolist() == [2.5, 2.5, 1.0]  # equal scores share their rank
    row = judged(np.array([0.1, 0.9, 0.8]), torch.tensor([0, 1, 0]), 0.01)
    assert row == {"auroc 1 %": 1.0, "ap 1 %": 1.0}


def test_answers_are_what_the_records_say(task):
    found = answers(task.train)
    i, f = 4, PARAMETERS.index("HR")
    where = (task.train.row == i) & (task.train.feature == f)
    late = task.train.time > 24
    torch.testing.assert_close(found["heart rate"][i], task.train.value[where].mean())
    assert torch.equal(found["severity"], task.train.factors["severity"])
    assert torch.equal(found["trend"], task.train.factors["trend"])
    real = task.train.__class__(**{**vars(task.train), "factors": {"saps": torch.arange(200.0)}})
    trend = task.train.value[where & late].mean() - task.train.value[where & ~late].mean()
    torch.testing.assert_close(answers(real)["trend"][i], trend)
    assert answers(real)["severity"][7] == 7
    never = torch.bincount(task.train.row[task.train.feature == f], minlength=200) == 0
    assert never.any() and found["heart rate"][never].isnan().all()


def test_regressions_leave_out_what_is_not_known():
    g = torch.Generator().manual_seed(0)
    x, held = torch.randn(100, 3, generator=g), torch.randn(60, 3, generator=g)
    y, held_y = x @ torch.tensor([1.0, 2.0, 0.0]), held @ torch.tensor([1.0, 2.0, 0.0])
    y[:40], held_y[:20] = torch.nan, torch.nan
    assert explained(x, y, held, held_y) > 0.99
    y[:95] = torch.nan
    assert np.isnan(explained(x, y, held, held_y))


def test_the_unit_is_read_from_features_and_not_from_the_descriptors(task):
    g = torch.Generator().manual_seed(0)
    blind = asked(task, torch.randn(200, 4, generator=g), torch.randn(60, 4, generator=g))
    assert blind["unit accuracy"] < 0.5 and abs(blind["severity r2"]) < 0.3
    seeing = [records.static[:, 3:4] == torch.arange(1, 5) for records in (task.train, task.held)]
    assert asked(task, *(one.float() for one in seeing))["unit accuracy"] == 1.0
    assert set(blind) == {"heart rate r2", "severity r2", "trend r2", "unit accuracy"}


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_the_average_is_the_plain_mean_of_the_last_part(task):
    model = FineTuned(make_encoder(), task.extra.shape[1], FineTuneConfig(average_from=0.5))
    weights = []
    for step in range(8):
        with torch.no_grad():
            for p in [*model.encoder.parameters(), *model.head.parameters()]:
                p.add_(0.1 * (step + 1))
        model.after_step(step / 8)
        weights.append(model.head.weight.clone())
    torch.testing.assert_close(model.averaged[1].weight, torch.stack(weights[4:]).mean(0))
    torch.testing.assert_close(
        model.averaged[0].tokenizer.place.weight - model.encoder.tokenizer.place.weight,
        torch.full_like(model.encoder.tokenizer.place.weight, -(0.6 + 0.7 + 0.8 + 0.7 + 0.8 + 0.8) / 4),
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_however_short_the_run_the_scores_are_those_of_trained_weights(task, steps):
    """An average that mostly holds its start would score as the untrained model does."""
    encoder = make_encoder()
    config = FineTuneConfig(steps=steps, few_steps=steps, batch_size=8, observations=8, head_lr=0.1, lr=0.1)
    model = fine_tune(encoder, task.train, task.extra, torch.arange(20), config, device="cpu")
    start = FineTuned(encoder, task.extra.shape[1], config)
    moved = [(a - b).abs().max() for a, b in zip(model.averaged[0].parameters(), encoder.parameters(), strict=True)]
    trained = [(a - b).abs().max() for a, b in zip(model.encoder.parameters(), encoder.parameters(), strict=True)]
    # Weights of features that these stays lack have no gradient; warm-up makes the last steps the largest.
    assert max(moved) > 0.3 * max(trained) > 0
    assert model.head.weight.shape == start.head.weight.shape
    given = scores(model, task.held, task.held_extra, 8)
    assert given.std() > 0 and given.shape == (60,) and given.isfinite().all()


def test_fine_tuning_learns_and_leaves_the_pretrained_encoder_as_it_was(task):
    encoder = JEPA(make_encoder()).representing_encoder  # a target encoder: frozen
    before = [p.clone() for p in encoder.parameters()]
    config = FineTuneConfig(steps=120, batch_size=32, observations=0, lr=1e-2, head_lr=1e-2, dropout=0.0)
    model = fine_tune(encoder, task.train, task.extra, torch.arange(200), config, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    assert not any(p.requires_grad for p in encoder.parameters())
    found = scores(model, task.train, task.extra, 0)
    assert roc_auc_score(task.train.label, found) > 0.8
    assert not any(torch.equal(a, b) for a, b in zip(before[:1], model.encoder.parameters(), strict=False))


def test_rates_of_encoder_and_head_differ_and_scratch_has_its_own(task, monkeypatch):
    seen = []

    class Spy:
        def __init__(self, model, batches, config):
            seen.append((model, len(batches), config, model.param_groups(config.lr)))

        def fit(self):
            pass

    monkeypatch.setattr("jepa_lab.fine_tuning.Trainer", Spy)
    config = FineTuneConfig(steps=40, few_steps=10, lr=1e-4, scratch_lr=2e-3, head_lr=3e-3)
    encoder = make_encoder()
    fine_tune(encoder, task.train, task.extra, torch.arange(200), config)
    fine_tune(make_encoder, task.train, task.extra, torch.arange(30), config)
    for (model, steps, _, groups), rate, expected in zip(seen, (1e-4, 2e-3), (40, 10), strict=True):
        head = set(model.head.parameters())
        assert steps == expected
        assert {group["lr"] for group in groups if set(group["params"]) & head} == {3e-3}
        assert {group["lr"] for group in groups if not set(group["params"]) & head} == {rate}
        number = sum(len(group["params"]) for group in groups)
        assert number == len(list(model.encoder.parameters())) + 2  # the average is no parameter of the optimizer
        assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim < 2)
    assert torch.equal(seen[0][0].encoder.tokenizer.place.weight, encoder.tokenizer.place.weight)
    assert not torch.equal(seen[1][0].encoder.tokenizer.place.weight, encoder.tokenizer.place.weight)


def test_labelled_batches_show_each_stay_equally_often(task):
    few = task.train.take(torch.arange(5))
    batches = list(LabelledBatches(few, task.extra[:5], FineTuneConfig(batch_size=8, observations=4), 10, 0)(0))
    assert len(batches) == 10 and all(len(batch["label"]) == 8 for batch in batches)
    shown = torch.cat([batch["extra"][:, 0] for batch in batches])
    count = [(shown == value).sum().item() for value in task.extra[:5, 0]]
    assert count == [16] * 5
    assert max(batch["value"].shape[1] for batch in batches) == 4


def test_a_stay_without_observations_is_scored_by_what_else_is_known():
    records = of_lengths([0, 3, 0])
    model = FineTuned(make_encoder(), 2)
    extra = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    found = scores(model, records, extra, 0)
    assert found.isfinite().all() and found[0] != found[2]
    batch = next(in_order(records)) | {"extra": extra}
    model(batch)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "finetune.steps must not be negative"),
        ({"average_from": 1.0}, r"finetune.average_from and dropout must lie in \[0, 1\), got 1.0"),
        ({"observations": -1}, "finetune.observations must not be negative"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuneConfig(**settings)
    with pytest.raises(ValueError, match=r"probe.labels must be shares of the labels in \(0, 1\]"):
        ProbeConfig(labels=(0.0,))
    with pytest.raises(ValueError, match=r"probe.observations must not be negative"):
        ProbeConfig(observations=-1)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_controls_and_model_rows_have_the_same_columns(task):
    base = bar(task, PROBE)
    rows = control_rows(task, make_encoder, base, PROBE, SHORT, device="cpu")
    rows += frozen_rows(task, JEPA(make_encoder()), "jepa", base, PROBE)
    rows += tuned_rows(task, make_encoder(), "jepa, fine-tuned", base, SHORT, 8, device="cpu")
    methods = [row["method"] for row in rows]
    assert methods == [
        "chance", "summary", "boosted trees", "boosted trees + summary", "random init", "random init + summary",
        "supervised", "supervised + summary", "jepa", "jepa + summary", "jepa, fine-tuned",
        "jepa, fine-tuned + summary",
    ]  # fmt: skip
    deaths = {"auroc", "ap", "auroc 20 %", "ap 20 %"}
    for row in rows:
        assert deaths <= set(row), row["method"]
        assert all(0 <= row[name] <= 1 for name in deaths)
        if row["method"] in ("chance", "summary", "random init", "jepa"):
            assert {"heart rate r2", "severity r2", "trend r2", "unit accuracy"} <= set(row)
    found = dict(zip(methods, rows, strict=True))
    assert found["chance"]["auroc"] == 0.5 and found["summary"]["heart rate r2"] > 0.99
    assert found["random init"]["auroc mean"] > 0.5 and found["jepa"]["rank"] > 1
    with pytest.raises(ValueError, match="unknown control row 'oracle'; known: chance, summary"):
        control_rows(task, make_encoder, base, PROBE, SHORT, rows=["oracle"])
    none = control_rows(task, make_encoder, base, PROBE, FineTuneConfig(steps=0), rows=["supervised"])
    assert none == []  # without fine-tuning nothing is trained with labels


@pytest.mark.slow
def test_averaged_rows_are_those_of_the_averaged_ranks(task):
    base = bar(task, PROBE)
    rows = frozen_rows(task, JEPA(make_encoder(), seed=1), "jepa", base, PROBE)
    torch.manual_seed(0)
    again = bar(task, PROBE)
    assert all(np.array_equal(again.scores[s], base.scores[s]) for s in PROBE.labels)
    alone = judged(base.scores[1.0], task.held.label)["auroc"]
    both = rows[1]["auroc"]
    assert rows[1]["method"] == "jepa + summary" and both != alone and both != rows[0]["auroc"]


@pytest.mark.slow
def test_labels_of_held_out_stays_change_no_score(task):
    """Flip all of them: the ranking of the stays must stay, so that every AUROC becomes its complement."""
    flipped = task._replace(held=task.held.__class__(**{**vars(task.held), "label": 1 - task.held.label}))
    one, two = (
        [
            *control_rows(
                t, make_encoder, bar(t, PROBE), PROBE, SHORT, rows=["summary", "boosted trees"], device="cpu"
            ),
            *frozen_rows(t, JEPA(_seeded()), "jepa", bar(t, PROBE), PROBE),
            *tuned_rows(t, _seeded(), "tuned", bar(t, PROBE), SHORT, 8, device="cpu"),
        ]
        for t in (task, flipped)
    )
    for a, b in zip(one, two, strict=True):
        for name in ("auroc", "auroc 20 %"):
            assert a[name] == pytest.approx(1 - b[name]), (a["method"], name)


def _seeded():
    torch.manual_seed(0)
    return make_encoder()


# --- the command -----------------------------------------------------------------------------------------------------


def command(name, folder, *extra, seeds=("0",)):
    small = ["--encoder.dim=8", "--encoder.depth=1", "--batches.observations=8", "--probe.observations=8"]
    small += ["--trainer.epochs=2", "--trainer.batch_size=32", "--trainer.device=cpu", "--probe.labels=[1.0, 0.5]"]
    small += ["--finetune.steps=2", "--finetune.few_steps=2", "--finetune.batch_size=8"]
    data = ["--data.name=generator", "--data.settings={n: 150, density: 0.1}"]
    place = ["--out", str(folder), "--seeds", *seeds]
    return ["train", "--config", str(CONFIGS / f"{name}.yaml"), *small, *data, *place, *extra]


def test_the_family_is_that_of_the_data_for_objectives_on_tokens():
    assert family_name("images", "generator") == family_name("images", "physionet2012") == "clinical"
    assert family_name("images", "digits") == family_name("images", None) == "images"
    assert family_name("text", "generator") == "text"
    for name in ("mae", "jepa", "contrastive"):
        config = parse(["--config", str(CONFIGS / f"triangle_{name}.yaml")])
        assert family(config) is clinical is FAMILIES["clinical"]
    with pytest.raises(ArgumentError, match=r"encoder.patch"):
        parse(["--config", str(CONFIGS / "triangle_mae.yaml"), "--encoder.patch=2"])
    images = parse(["--config", str(CONFIGS / "digits_jepa.yaml")])
    assert family(images) is FAMILIES["images"]
    with pytest.raises(ArgumentError, match="probe"):
        parse(["--config", str(CONFIGS / "digits_jepa.yaml"), "--probe.observations=3"])


def test_the_triangle_differs_in_its_objective_alone():
    one, *others = (resolve(CONFIGS / f"triangle_{name}.yaml") for name in ("mae", "jepa", "contrastive"))
    for other in others:
        assert {k: v for k, v in one.items() if k not in ("name", "objective")} == {
            k: v for k, v in other.items() if k not in ("name", "objective")
        }
        assert one["objective"]["mask"] == other["objective"]["mask"]
    assert one["objective"]["decoder"] == others[0]["objective"]["predictor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.held_out=1.5"], "data.held_out, the share of the stays, must lie in (0, 1), got 1.5"),
        (["--data.settings={sigma: 1}"], "data.settings of physionet2012: got an unexpected keyword argument 'sigma'"),
        (["--finetune.steps=-1"], "finetune.steps must not be negative"),
        (["--batches.pool=0"], "batches.pool must be at least 1"),
        (["--objective.mask.kind=hours"], "objective.mask.kind"),
        (["--controls=[oracle]"], "controls"),
        (["--monitoring.explain_every=1"], "monitoring.explain_every=1 needs a model of texts"),
    ],
)
def test_bad_settings_are_refused_before_the_run(arguments, message, capsys):
    assert main(["train", "--config", str(CONFIGS / "triangle_mae.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_writes_all_rows_and_repeats(tmp_path, capsys):
    extra = ["--trainer.evaluate_every=1"]
    assert main(command("triangle_jepa", tmp_path / "a", *extra, seeds=("0", "1"))) == 0
    assert "AUROC %: chance 50.0, summary" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "triangle_jepa.json").read_text())
    assert found["config"] == resolve(CONFIGS / "triangle_jepa.yaml", found["overrides"])
    for run in found["runs"]:
        assert [row["method"] for row in run["rows"]][-4:] == [
            "jepa", "jepa + summary", "jepa, fine-tuned", "jepa, fine-tuned + summary",
        ]  # fmt: skip
        assert len(run["rows"]) == 12
        assert run["curves"]["step"] == [0, 3, 6] and {"loss", "normalized_std"} <= set(run["curves"])
    assert found["runs"][0]["rows"][1] != found["runs"][1]["rows"][1]  # another split
    assert main(command("triangle_jepa", tmp_path / "b", "--controls=[]")) == 0
    again = json.loads((tmp_path / "b" / "triangle_jepa.json").read_text())["runs"][0]["rows"]
    assert again == found["runs"][0]["rows"][-4:]  # and the controls change nothing
    checkpoint = next((tmp_path / "b" / "checkpoints").rglob("*.pt"))
    assert evaluate(checkpoint) == again


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae", "contrastive"])
def test_the_others_run_by_the_same_command(name, tmp_path):
    extra = ["--controls=[]", "--split=validation", "--checkpoints=none"]
    assert main(command(f"triangle_{name}", tmp_path, *extra)) == 0
    rows = json.loads((tmp_path / f"triangle_{name}.json").read_text())["runs"][0]["rows"]
    assert rows[0]["method"] == name


def test_validation_is_a_part_of_the_rest_and_the_test_is_never_touched():
    data = clinical.ClinicalConfig("generator", {"n": 200, "density": 0.05})
    test, validation = (clinical.load(data, 3, part) for part in ("test", "validation"))
    names = {part: set(getattr(test, part).name) for part in ("train", "held")}
    assert not names["train"] & names["held"] and len(names["held"]) == 40
    assert set(validation.held.name) <= names["train"] and set(validation.train.name) <= names["train"]
    assert not set(validation.held.name) & set(validation.train.name)
    hr = test.train.feature == PARAMETERS.index("HR")
    assert (
        test.train.value[hr].mean().abs()
        < 1e-4
        < test.held.value[test.held.feature == PARAMETERS.index("HR")].mean().abs()
    )  # the scale is that of the training stays


@pytest.mark.slow
def test_records_from_a_folder_run_too(tmp_path):
    write_records(generate(60, 1, GeneratorConfig(channels=("HR", "K"), density=0.1)), tmp_path / "physionet2012")
    data = ["--data.name=physionet2012", f"--data.settings={{root: {tmp_path}}}", "--controls=[summary]"]
    assert main([*command("triangle_mae", tmp_path), *data, "--trainer.batch_size=16"]) == 0
    rows = json.loads((tmp_path / "triangle_mae.json").read_text())["runs"][0]["rows"]
    assert [row["method"] for row in rows][:2] == ["summary", "mae"]
    assert np.isnan(rows[1]["severity r2"])  # no SAPS-I in it, and said so


def test_all_controls_can_be_asked_for():
    config = parse(["--config", str(CONFIGS / "triangle_jepa.yaml")])
    assert tuple(config.controls) == CONTROLS
    assert build(config).finetune.steps > 0


@pytest.mark.parametrize(
    ("names", "n"), [(("triangle", "triangle_flops"), 128), (("triangle_generator",), 84)], ids=["set A", "generator"]
)
def test_equal_flops_are_equal_to_three_percent(names, n):
    """The epochs of a case times the arithmetic of its step, for records as long as the run shows them."""
    g = torch.Generator().manual_seed(0)
    batch = {
        "value": torch.randn(8, n, generator=g),
        "time": 48 * torch.rand(8, n, generator=g),
        "feature": torch.randint(37, (8, n), generator=g),
        "valid": torch.ones(8, n, dtype=torch.bool),
    }
    work, alike = {}, []
    for name in names:
        arguments = ["--config", str(CONFIGS / f"{name}.yaml")]
        alike.append({k: v for k, v in stored(parse(arguments)).items() if k not in ("name", "sweep", "controls")})
        for case, extra in build(parse(arguments)).sweep.overrides().items():
            config = repetition(arguments, extra)
            parts = build(config)
            encoder = series_encoder(37, parts.encoder)
            objective = build_objective(config.objective.name, encoder, parts.objective)
            work[case] = step_flops(objective, batch) * parts.trainer.epochs
    assert all(one == alike[0] for one in alike)  # nothing but the epochs differs
    assert work["JEPA"] > 1.4 * work["MAE"] and work["contrastive"] > 1.2 * work["MAE"]
    for case in ("JEPA, FLOPs of MAE", "contrastive, FLOPs of MAE"):
        assert work[case] == pytest.approx(work["MAE"], rel=0.03), case
