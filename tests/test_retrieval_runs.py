"""Runs of a retrieval model by the one command, on the tiny file of test_text_runs; and that it never sees the test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from jepa_lab import families
from jepa_lab.__main__ import main
from jepa_lab.config import build, family, parse, resolve
from jepa_lab.data import text
from jepa_lab.data.negatives import NegativesConfig
from jepa_lab.experiment import evaluate
from jepa_lab.families.retrieval import load, training_set, untrained
from jepa_lab.families.text import TextConfig
from jepa_lab.metrics import effective_rank, mean_cosine, normalized_std
from jepa_lab.ranking import retrieval_metrics
from jepa_lab.regularisers import isotropy
from jepa_lab.retrieval_rows import control_rows, model_rows, represented, space
from jepa_lab.search import STEPS
from jepa_lab.text_nets import TextEncoderConfig
from jepa_lab.training import TrainConfig, Trainer
from tests.test_text_runs import articles, load_task_again, write

ROOT = Path(__file__).parent.parent
BASE_YAML = str(ROOT / "jepa_lab" / "configs" / "retrieval_base.yaml")
CONTROLS = ["chance", "cosine", "TF-IDF", "untrained"]
MODEL = ["retrieval", "retrieval, predicted", "retrieval, mixed", "retrieval + TF-IDF"]
WORDS = ["--encoder.base=scratch", "--encoder.dim=12"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("JEPA_LAB_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "tiny.json", articles())
    load_task_again()
    return tmp_path


def settings(folder):
    return TextConfig("squad", {"root": str(folder), "name": "tiny.json"}, dim=12)


def command(folder, *extra, seeds=("0",)):
    data = ["--data.name=squad", f"--data.settings={{root: {folder}, name: tiny.json}}", "--data.dim=12"]
    recipe = ["--trainer.epochs=2", "--trainer.batch_size=16", "--trainer.warmup_steps=2", "--trainer.device=cpu"]
    model = ["--encoder.dim=12", "--objective.loss.lambda_predictive=1", "--objective.loss.lambda_contrastive=1"]
    out = ["--sweep.cases={}", "--out", str(folder)]
    return ["train", "--config", BASE_YAML, *data, *recipe, *model, *out, "--seeds", *seeds, *extra]


def result(folder):
    return json.loads((folder / "retrieval_base.json").read_text())


def test_a_run_writes_control_rows_and_model_rows(tiny, capsys):
    assert main(command(tiny, "--trainer.evaluate_every=1", seeds=("0", "1"))) == 0
    assert "recall@10 %: chance" in capsys.readouterr().out
    found = result(tiny)
    assert found["config"] == resolve(BASE_YAML, found["overrides"])
    for run in found["runs"]:
        rows = {row["method"]: row for row in run["rows"]}
        assert list(rows) == CONTROLS + MODEL
        for row in rows.values():
            for name in ("recall@1", "recall@10", "mrr", "ndcg@10"):
                assert 0 <= row[name] <= 1 and 0 <= row[f"{name} all"] <= row[name] + 0.2
        assert rows["untrained"]["mrr"] == pytest.approx(rows["cosine"]["mrr"])  # it starts as LSA
        assert rows["retrieval"]["isotropy"] != rows["untrained"]["isotropy"]
        assert {"verdict", "source_std", "effective_rank", "cosine 50 %"} <= set(rows["cosine"]) & set(
            rows["retrieval"]
        )
        curves = run["curves"]
        assert {len(column) for column in curves.values()} == {3}
        assert {"loss", "predictive", "contrastive", "contrastive_accuracy", "prediction_cosine"} <= set(curves)
        assert curves["validation/mrr"][0] > 0 and curves["validation/prediction_error"][-1] < 1
    one, two = (run["rows"] for run in found["runs"])
    assert one[1]["mrr"] != two[1]["mrr"]  # another seed is another split


@pytest.mark.parametrize(
    "extra",
    [
        ["--encoder.base=frozen", "--encoder.start=random", "--encoder.dim=20"],
        ["--encoder.net=transformer", "--encoder.start=random", "--encoder.width=8", "--encoder.depth=1"],
        ["--objective.architecture=asymmetric", "--data.split_by=topic", "--objective.mix=0.5"],
        ["--objective.architecture=bidirectional", "--objective.phases.frozen_until=0.5", "--negatives.n_neg=0"],
    ],
    ids=["frozen", "transformer", "asymmetric", "bidirectional"],
)
def test_every_base_and_architecture_runs(tiny, extra):
    assert main(command(tiny, *extra)) == 0
    rows = {row["method"]: row for row in result(tiny)["runs"][0]["rows"]}
    assert list(rows) == CONTROLS + MODEL
    # On 22 test paragraphs, with two epochs: no model is better for it, but each must still find something.
    assert rows["retrieval"]["mrr"] > rows["chance"]["mrr"]


def test_without_a_predictor_there_are_no_rows_of_predictions(tiny):
    assert main(command(tiny, "--objective.loss.lambda_predictive=0", "--controls=[]")) == 0
    assert [row["method"] for row in result(tiny)["runs"][0]["rows"]] == ["retrieval", "retrieval + TF-IDF"]


@pytest.mark.slow
def test_a_run_repeats_and_its_checkpoint_says_the_same(tiny):
    assert main(command(tiny)) == 0
    first = result(tiny)["runs"][0]["rows"]
    path = next((tiny / "checkpoints" / "retrieval_base").rglob("epoch_*2.pt"))
    assert evaluate(path) == first
    load_task_again()
    assert main(command(tiny)) == 0
    assert result(tiny)["runs"][0]["rows"] == first


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny):
    """With phases: parameters that are frozen have no gradients, and a process must not wait for them."""
    extra = ["--objective.phases.frozen_until=0.5", "--objective.predictor.dropout=0", "--controls=[]"]
    assert main(command(tiny, *extra)) == 0
    one = result(tiny)["runs"][0]["rows"][0]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "jepa_lab"]
    other = command(tiny, *extra, "--out", str(tiny / "two"))
    done = subprocess.run([*launch, *other], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = result(tiny / "two")["runs"][0]["rows"][0]
    assert two["mrr"] == pytest.approx(one["mrr"], abs=0.02) and two["source_std"] == pytest.approx(
        one["source_std"], rel=1e-3
    )


# ------------------------------------------------------------------------------------------------- rows


@pytest.fixture
def trained(tiny):
    """A task, a model that is a little trained, and one that is not."""
    config = parse(command(tiny)[1:])
    parts = build(config)
    prepared = family(config).prepare(config, parts, 0)
    Trainer(prepared.objective, prepared.batches, prepared.trainer).fit()
    return prepared.data, prepared.objective, untrained(config, parts, prepared.data, 0)


def by_hand(task, query, source, part="test"):
    """Metrics over the distinct sources of a part, of scores query x source."""
    search = task.search
    pool = search.pool("part", part)
    right = search.right(part, pool)
    rows = search.parts[part]
    score = query[rows] @ source[pool].T
    own = score.gather(1, right[:, None])
    above, equal = (score > own + 1e-6).sum(1), ((score - own).abs() <= 1e-6).sum(1) - 1
    return retrieval_metrics(1.0 + above + equal / 2)


def test_model_rows_search_with_what_they_say(trained):
    task, objective, _ = trained
    q, y, p = (represented(task, objective, name) for name in ("query", "source", "predicted"))
    rows = {row["method"]: row for row in model_rows(task, objective, "m")}
    for name, query in {"m": q, "m, predicted": p}.items():
        for metric, value in by_hand(task, query, y).items():
            assert rows[name][metric] == pytest.approx(value), (name, metric)
    validation = {w: by_hand(task, q + w * p, y, "validation")["mrr"] for w in STEPS}
    best = rows["m, mixed"]["parameter"]["part"]
    assert validation[best] == pytest.approx(max(validation.values()))
    assert rows["m, mixed"]["mrr"] == pytest.approx(by_hand(task, q + best * p, y)["mrr"])
    test = task.search.parts["test"]
    assert rows["m"]["prediction_error"] == pytest.approx(float(1 - (p * y)[test].sum(1).mean()), abs=1e-6)
    assert rows["m"]["source_std"] == pytest.approx(float(normalized_std(y[test])), rel=1e-4)
    words = torch.from_numpy((task.search.lexical[0] @ task.search.lexical[1].T).toarray())
    weight = rows["m + TF-IDF"]["parameter"]["part"]
    pool = task.search.pool("part", "test")
    score = q[test] @ y[pool].T + weight * words[test][:, pool]
    own = score.gather(1, task.search.right("test", pool)[:, None])
    assert rows["m + TF-IDF"]["recall@1"] == pytest.approx(float(((score > own + 1e-6).sum(1) == 0).float().mean()))


def test_represented_is_the_model_on_all_texts_in_chunks(trained, monkeypatch):
    task, objective, _ = trained
    whole = represented(task, objective, "source")
    monkeypatch.setattr("jepa_lab.retrieval_rows.CHUNK", 7)
    torch.testing.assert_close(represented(task, objective, "source"), whole)
    torch.testing.assert_close(whole, objective.represent(task.batch(torch.arange(len(whole))), "source"))


def test_the_search_is_batched(trained, monkeypatch):
    """No matrix of all questions against all sources: `SearchTask.ranks` scores 1024 questions at a time."""
    task, objective, _ = trained
    data = task.batch(task.search.parts["test"])
    assert objective.evaluate(data, chunk=4) == pytest.approx(objective.evaluate(data))


def test_control_rows(trained):
    task, _, fresh = trained
    rows = {row["method"]: row for row in control_rows(task, fresh)}
    assert list(rows) == CONTROLS
    search = task.search
    assert rows["cosine"]["mrr"] == pytest.approx(by_hand(task, search.question, search.source)["mrr"])
    words = [torch.from_numpy(rows.toarray()) for rows in search.lexical]
    assert rows["TF-IDF"]["mrr"] == pytest.approx(by_hand(task, *words)["mrr"])
    assert rows["chance"]["recall@1"] == pytest.approx(1 / len(search.pool("part", "test")))


def test_the_health_of_a_space():
    generator = torch.Generator().manual_seed(0)
    round_ = F.normalize(torch.randn(600, 16, generator=generator), dim=1)
    cone = F.normalize(round_ + torch.tensor([4.0] + [0.0] * 15), dim=1)
    good, bad = space(round_), space(cone)
    assert good["verdict"] == "healthy" and bad["verdict"] == "constant offset"
    assert abs(good["cosine 50 %"]) < 0.02 and bad["cosine 50 %"] > 0.5
    for found, z in ((good, round_), (bad, cone)):
        assert found["source_std"] == pytest.approx(float(normalized_std(z)), rel=1e-4)
        assert found["source_cosine"] == pytest.approx(float(mean_cosine(z)), abs=1e-4)
        assert found["effective_rank"] == pytest.approx(float(effective_rank(z - z.mean(0))), rel=1e-3)
        assert found["isotropy"] == pytest.approx(float(isotropy(4 * z)))
        off = (z @ z.T)[~torch.eye(600, dtype=torch.bool)]
        expected = off[::7].quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        assert [found[f"cosine {q} %"] for q in (5, 50, 95)] == pytest.approx(expected, abs=0.02)


# ------------------------------------------------------------------------------------------------- the test is not seen


@pytest.mark.parametrize(
    "encoder", [("frozen", "bag", "random"), ("scratch", "bag", "lsa"), ("scratch", "transformer", "random")]
)
def test_no_text_of_the_test_reaches_the_training(tiny, encoder):
    """The same file with other words in the test's paragraphs and questions: vocabulary, start, batches and, after
    training, every weight are the same, to the bit. With other words in one training paragraph they are not."""
    base, net, start = encoder
    config = TextEncoderConfig(base, net, start, dim=12, width=8, depth=1)

    def train():
        load_task_again()
        task = load(settings(tiny), config, 0)
        trainer = TrainConfig(epochs=2, batch_size=16, warmup_steps=2, device="cpu")
        dataset = training_set(task, NegativesConfig(n_neg=2), trainer)
        parsed = parse(command(tiny, f"--encoder.base={base}", f"--encoder.net={net}", f"--encoder.start={start}",
                               "--encoder.width=8", "--encoder.depth=1")[1:])  # fmt: skip
        objective = untrained(parsed, build(parsed), task, 0)
        Trainer(objective, dataset, trainer).fit()
        return task, {name: p.detach().clone() for name, p in objective.named_parameters()}

    task, before = train()
    pairs = text.squad_pairs(tiny, "tiny.json")
    test, train_rows = (set(task.search.parts[name].tolist()) for name in ("test", "train"))

    def rewrite(rows):
        changed = []
        for title, contexts in articles():
            new = []
            for context, asked in contexts:
                mine = {i for i in range(len(pairs)) if pairs.source[i] == context}
                hit = bool(mine & rows)
                new.append((context.replace("all", "none") if hit else context,
                            [q.replace("all", "some") if hit else q for q in asked]))  # fmt: skip
            changed.append((title, new))
        write(tiny / "tiny.json", changed)

    rewrite(test)
    other, after = train()
    assert other.search.parts["test"].tolist() == task.search.parts["test"].tolist()
    assert text.squad_pairs(tiny, "tiny.json").hash != pairs.hash
    assert all(torch.equal(before[name], after[name]) for name in before)
    rewrite(train_rows)
    _, moved = train()
    shapes_differ = any(before[name].shape != moved[name].shape for name in before)
    assert shapes_differ or not all(torch.equal(before[name], moved[name]) for name in before)


# ------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--encoder.dim=11"], 2, "encoder.start=lsa needs data.encoder=lsa and data.dim=11 as encoder.dim"),
        (["--objective.architecture=three"], 2, "architecture"),
        (["--objective.loss.kind=l3"], 2, "objective.loss.kind"),
        (["--steering.n_neg=4"], 2, "steering"),  # a setting of the steering predictor
        (["--data.settings={rot: x}"], 2, "data.settings of squad: got an unexpected keyword argument 'rot'"),
        (["--monitoring.explain_every=1", "--monitoring.folder=m"], 2, "needs a steering predictor; set it to 0"),
        (["--negatives.n_neg=99"], 1, "negatives.n_neg=99 is larger than the pool of 24 other sources"),
        (["--trainer.batch_size=4096"], 1, "batch_size must lie in 1.."),
    ],
)
def test_faults_are_messages(tiny, capsys, extra, code, message):
    assert main(command(tiny, *extra)) == code
    assert message in capsys.readouterr().err
    assert not (tiny / "retrieval_base.json").exists()


def test_the_family_is_registered():
    assert families.FAMILIES["retrieval"].load is load
