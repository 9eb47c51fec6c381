"""Runs on pairs of texts by the one command, on a file in SQuAD format that is small enough for a test."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jepa_lab import experiment, families
from jepa_lab.__main__ import main
from jepa_lab.config import resolve
from jepa_lab.data import text
from jepa_lab.data.steering import keyword_vectors
from jepa_lab.explanation import Explanation
from jepa_lab.families.text import TextConfig, load_task
from jepa_lab.search import control_rows, fit_ridge

BASE_YAML = str(Path(__file__).parent.parent / "jepa_lab" / "configs" / "jasper_base.yaml")
TOPICS, PARAGRAPHS, QUESTIONS = 6, 6, 3
CONTROLS = ["chance", "cosine", "centroid arithmetic", "ridge [q; c]", "topic filter", "TF-IDF", "TF-IDF, steered"]
MODEL = ["", ", zero", ", residual", ", wrong", ", keyword", " + filter", " + TF-IDF", " + steered TF-IDF"]


def articles(topics=TOPICS, paragraphs=PARAGRAPHS):
    """Paragraphs of words of their topic, words of their own place in the article, and words of everybody."""
    draw = random.Random(0)
    for t in range(topics):
        contexts = []
        for i in range(paragraphs):
            words = [f"topic{t}x{draw.randrange(4)}" for _ in range(5)]
            words += [f"place{i}x{draw.randrange(4)}" for _ in range(5)] + [f"all{draw.randrange(9)}" for _ in range(6)]
            asked = [f"place{i}x{draw.randrange(4)} all{draw.randrange(9)} which" for _ in range(QUESTIONS)]
            contexts.append((" ".join(words) + f" only{t}y{i}", asked))
        yield f"Article {t}", contexts


def write(path, content):
    data = []
    for title, contexts in content:
        paragraphs = [
            {"context": context, "qas": [{"question": q, "id": f"{title} {n}"} for n, q in enumerate(asked)]}
            for context, asked in contexts
        ]
        data.append({"title": title, "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The folder of tiny.json, and a cache of its own."""
    monkeypatch.setenv("JEPA_LAB_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "tiny.json", articles())
    return tmp_path


def command(folder, *extra, name="tiny.json", seeds=("0",)):
    data = ["--data.name=squad", f"--data.settings={{root: {folder}, name: {name}}}", "--data.dim=12"]
    model = ["--objective.model.hidden_dim=16", "--objective.model.num_layers=1", "--steering.n_neg=4"]
    recipe = ["--trainer.epochs=2", "--trainer.batch_size=16", "--trainer.warmup_steps=2", "--trainer.device=cpu"]
    arguments = ["train", "--config", BASE_YAML, *data, *model, *recipe, "--out", str(folder)]
    return [*arguments, "--seeds", *seeds, *extra]


def result(folder):
    return json.loads((folder / "jasper_base.json").read_text())


def test_a_run_writes_control_rows_and_model_rows(tiny, capsys):
    assert main(command(tiny, "--trainer.evaluate_every=1", seeds=("0", "1"))) == 0
    assert "recall@10 %: chance" in capsys.readouterr().out
    found = result(tiny)
    assert found["config"] == resolve(BASE_YAML, found["overrides"])
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    for run in found["runs"]:
        rows = {row["method"]: row for row in run["rows"]}
        assert list(rows) == CONTROLS + [f"jasper{name}" for name in MODEL]
        for row in rows.values():
            for name in ("recall@1", "recall@10", "mrr", "ndcg@10"):
                assert 0 <= row[name] <= 1 and 0 <= row[f"{name} all"] <= row[name] + 0.2
        assert rows["topic filter"]["mrr all"] > rows["cosine"]["mrr all"] > rows["chance"]["mrr all"]
        assert run["core_seconds"] > 0
        curves = run["curves"]
        assert {len(column) for column in curves.values()} == {3} and curves["epoch"] == [0, 1, 2]
        assert curves["loss"][0] is None and curves["validation/mrr"][0] > 0  # before the first step: p = q
        assert {"loss", "prediction", "contrastive", "centroid", "vicreg", "steering/zero"} <= set(curves)
        assert any(name.endswith("recall@10") for name in curves) and any(name.endswith("mrr") for name in curves)
    one, two = (run["rows"] for run in found["runs"])
    assert one[1]["mrr"] != two[1]["mrr"]  # another seed is another split, which the cosine shows


@pytest.mark.slow
def test_a_run_repeats(tiny):
    assert main(command(tiny)) == 0
    first = result(tiny)
    load_task_again()
    assert main(command(tiny)) == 0
    assert [run["rows"] for run in result(tiny)["runs"]] == [run["rows"] for run in first["runs"]]


def load_task_again():
    """Forget the tasks that are in memory: the second run reads texts and embeddings anew."""
    families.text._load_pairs.cache_clear()
    families.text._load_task.cache_clear()
    families.retrieval._lsa_directions.cache_clear()


def test_unseen_topics(tiny, capsys):
    by_topic = ["--data.split_by=topic", "--trainer.evaluate_every=1", "--steering.variant=mix"]
    assert main(command(tiny, *by_topic)) == 1  # the mixture draws keywords, which new topics do not have
    assert "set steering.keyword=0 to do without" in capsys.readouterr().err
    assert main(command(tiny, *by_topic, "--steering.keyword=0")) == 0
    methods = [row["method"] for row in result(tiny)["runs"][0]["rows"]]
    assert "jasper" in methods and "jasper, keyword" not in methods


def test_a_sweep_has_its_controls_once(tiny):
    sweep = ["--sweep.cases", "{ema: {objective.ema.target: ema}, linear: {objective.model.num_layers: 0}}"]
    assert main(command(tiny, *sweep)) == 0
    runs = result(tiny)["runs"]
    assert [run["case"] for run in runs] == ["ema", "linear"]
    assert [len(run["rows"]) for run in runs] == [len(CONTROLS) + len(MODEL), len(MODEL)]


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tiny, monkeypatch):
    run_seed, trained = experiment.run_seed, []

    def failing(config, seed, named):
        if len(trained) == 1:
            raise FloatingPointError("the second seed fails")
        trained.append(seed)
        return run_seed(config, seed, named)

    monkeypatch.setattr(experiment, "run_seed", failing)
    assert main(command(tiny, seeds=("0", "1"))) == 1
    kept = result(tiny)["runs"]
    monkeypatch.setattr(experiment, "run_seed", lambda c, s, n: trained.append(s) or run_seed(c, s, n))
    assert main(command(tiny, "--resume=true", seeds=("0", "1"))) == 0
    assert trained == [0, 1] and result(tiny)["runs"][0] == kept[0] and len(result(tiny)["runs"]) == 2


@pytest.mark.slow
def test_chosen_on_validation_when_asked(tiny):
    assert main(command(tiny, "--split=validation")) == 0
    on_validation = {row["method"]: row["mrr"] for row in result(tiny)["runs"][0]["rows"]}
    assert main(command(tiny)) == 0
    on_test = {row["method"]: row["mrr"] for row in result(tiny)["runs"][0]["rows"]}
    assert on_validation["chance"] > on_test["chance"]  # a smaller part is an easier pool


# ------------------------------------------------------------------------------------------------- with a router

ROUTED_YAML = BASE_YAML.replace("jasper_base", "jasper_routed")
TOPIC_CONTROLS = ["majority topic", "nearest centroid", "logistic regression"]
ROUTING = ["jasper_routed, routing", "jasper_routed, routing, zero", "jasper_routed, coarse"]


def routed_command(folder, *extra):
    return [ROUTED_YAML if part == BASE_YAML else part for part in command(folder, *extra)]


def routed_rows(folder):
    return {row["method"]: row for row in json.loads((folder / "jasper_routed.json").read_text())["runs"][0]["rows"]}


def test_a_routed_run_has_rows_of_its_routing(tiny):
    assert main(routed_command(tiny, "--trainer.epochs=30", "--trainer.lr=0.005")) == 0
    rows = routed_rows(tiny)
    assert list(rows) == CONTROLS + [f"jasper_routed{name}" for name in MODEL] + TOPIC_CONTROLS + ROUTING
    steered, alone, coarse = (rows[name] for name in ROUTING)
    for row in (steered, alone):
        for name in ("routing_accuracy", "ece", "failures", "failures all"):
            assert 0 <= row[name] <= 1
        assert 1 <= row["subspaces_used"] <= TOPICS + 1e-6 and row["residual_norm"] > 0
    assert steered["recall@10"] == rows["jasper_routed"]["recall@10"]
    assert alone["mrr"] == rows["jasper_routed, zero"]["mrr"]
    # Questions name no topic here, but the steering does: over seeds 0 to 2 measured 0.90 to 1.00, and 0.05 to 0.10.
    assert steered["routing_accuracy"] > 0.7 > 0.4 > alone["routing_accuracy"]
    assert coarse["recall@1"] < 1
    aurocs = [name for name in steered if name.startswith("AUROC") and name.endswith("all")]
    assert {f"AUROC {name} all" for name in ("residual", "entropy", "max similarity", "margin")} <= set(aurocs)
    task = load_task(TextConfig("squad", {"root": str(tiny), "name": "tiny.json"}, dim=12), 0)
    test, train = task.parts["test"], task.parts["train"]
    nearest = (task.question[test] @ task.centroids.T).argmax(1)
    assert rows["nearest centroid"]["routing_accuracy"] == (nearest == task.topic[test]).double().mean()
    most = int(torch.bincount(task.topic[train]).argmax())
    assert rows["majority topic"]["routing_accuracy"] == (task.topic[test] == most).double().mean()


@pytest.mark.slow
def test_a_routed_run_on_unseen_topics_has_no_routing_rows(tiny):
    assert main(routed_command(tiny, "--data.split_by=topic", "--steering.keyword=0", "--controls=[]")) == 0
    assert list(routed_rows(tiny)) == [f"jasper_routed{name}" for name in MODEL if name != ", keyword"]


def checkpoint(folder, name="jasper_routed"):
    return str(sorted((folder / "checkpoints" / name).glob("**/epoch*.pt"))[-1])


def test_explain(tiny, capsys):
    assert main(routed_command(tiny, "--controls=[]")) == 0
    capsys.readouterr()
    pairs = text.squad_pairs(tiny, "tiny.json")
    row = int(load_task(TextConfig("squad", {"root": str(tiny), "name": "tiny.json"}, dim=12), 0).parts["train"][0])
    arguments = ["explain", "--checkpoint", checkpoint(tiny), "--question", pairs.question[row]]
    assert main([*arguments, "--topic", pairs.topic[row], "--json", "--plot", str(tiny / "why.png")]) == 0
    one = Explanation.from_json(capsys.readouterr().out)
    assert one.form == "routed" and one.question == pairs.question[row] and list(one.distribution) == list(pairs.topics)
    assert one.nearest[0].question == pairs.question[row] and one.nearest[0].similarity == pytest.approx(1, abs=1e-5)
    assert one.steering_influence.kl > 0 and one.atypicality_percentile is not None
    assert one.steering_influence.without == "zero steering (50% to 30% of the pairs)"
    assert (tiny / "why.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--neighbours", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("like  ") == 1 and "0.00 nats, moved by 0.00" in said
    for extra, message in {
        "--topic=Article": "unknown topic 'Article' of 6; the nearest names: Article 5",
        "--question=qwertz": "none of the words of 'qwertz' occurs in the training texts",
        "--checkpoint=nowhere.pt": "cannot read the checkpoint nowhere.pt",
    }.items():
        assert main([*arguments, extra]) == 1
        assert message in capsys.readouterr().err
    assert main(arguments[:3]) == 2 and main([*arguments, "--neighbours", "0"]) == 2


def test_explanations_during_the_training(tiny, capsys):
    """Every second epoch, of a model that learns in between; and the training is the one without them."""
    recipe = ["--trainer.epochs=4", "--trainer.evaluate_every=1", "--controls=[]"]
    assert main(routed_command(tiny, *recipe)) == 0
    plain = torch.load(checkpoint(tiny), weights_only=False)["objective"]
    load_task_again()
    explain = ["--monitoring.folder", str(tiny / "m"), "--monitoring.explain_every=2", "--monitoring.explain_pairs=5"]
    assert main(routed_command(tiny, *recipe, *explain, "--out", str(tiny / "explained"))) == 0
    watched = torch.load(checkpoint(tiny / "explained"), weights_only=False)["objective"]
    torch.testing.assert_close(plain, watched, rtol=0, atol=0)
    paths = sorted((tiny / "m").glob("**/explanations/*"))
    assert [path.name for path in paths] == ["epoch002.json", "epoch004.json"]
    early, late = ([Explanation.from_json(json.dumps(one)) for one in json.loads(path.read_text())] for path in paths)
    task = load_task(TextConfig("squad", {"root": str(tiny), "name": "tiny.json"}, dim=12), 0)
    asked = list(text.squad_pairs(tiny, "tiny.json").take(task.parts["validation"][:5]).question)
    assert [one.question for one in early] == [one.question for one in late] == asked
    assert all(
        a.distribution != b.distribution and b.steering_influence.kl > 0 for a, b in zip(early, late, strict=True)
    )
    again = [*explain[:2], "--monitoring.explain_every=3", "--out", str(tiny / "explained")]
    assert main(routed_command(tiny, *recipe, *again)) == 0  # another run in the same folder leaves nothing of the old
    assert [path.name for path in sorted((tiny / "m").glob("**/explanations/*"))] == ["epoch003.json"]
    capsys.readouterr()
    for extra, code, message in [
        (["--trainer.evaluate_every=3"], 2, "must be a multiple of trainer.evaluate_every=3"),
        (["--monitoring.explain_every=5"], 2, "at most trainer.epochs=4"),
        (["--monitoring.folder="], 2, "needs monitoring.folder"),
        (["--monitoring.explain_pairs=0"], 2, "explain_pairs at least 1"),
        (["--data.split_by=topic", "--steering.keyword=0"], 2, "needs topics that the training knows"),
    ]:
        assert main(routed_command(tiny, *recipe, *explain, *extra, "--out", str(tiny / "faults"))) == code
        assert message in capsys.readouterr().err and not (tiny / "faults" / "jasper_routed.json").exists()


@pytest.mark.slow
def test_explain_without_a_router(tiny, capsys):
    assert main(command(tiny, "--controls=[]")) == 0
    capsys.readouterr()
    asked = ["--question", "place1x1 all1 which", "--topic", "Article 2", "--json"]
    assert main(["explain", "--checkpoint", checkpoint(tiny, "jasper_base"), *asked]) == 0
    one = Explanation.from_json(capsys.readouterr().out)
    assert one.form == "reduced" and one.primary_subspace is None and one.steering_influence.l2 > 0
    assert one.steering_influence.without == "the mean of the topics"  # the training never saw zero steering
    assert main(command(tiny, "--controls=[]", "--data.split_by=topic", "--out", str(tiny / "topics"))) == 0
    assert main(["explain", "--checkpoint", checkpoint(tiny / "topics", "jasper_base"), *asked]) == 1
    assert "explain needs a model that knows its topics" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the test is not seen


def test_no_text_of_the_test_reaches_embeddings_keywords_centroids_or_ridge(tiny):
    """The same file with other words in the test's paragraphs and questions."""
    settings = TextConfig("squad", {"root": str(tiny), "name": "tiny.json"}, dim=12)
    before = load_task(settings, 0)
    pairs = text.squad_pairs(tiny, "tiny.json")
    test = {pairs.source[i] for i in before.parts["test"].tolist()}
    assert 0 < len(test) < TOPICS * PARAGRAPHS

    def other(title, contexts):
        for context, asked in contexts:
            if context in test:  # known words, but all of another topic, with one of its own to stay distinct
                unique = context.split()[-1]
                yield f"topic0x1 topic1x1 all1 all2 place0x1 {unique} {unique}", [f"{q} place5x1" for q in asked]
            else:
                yield context, asked

    write(tiny / "other.json", [(title, list(other(title, contexts))) for title, contexts in articles()])
    after = load_task(TextConfig("squad", {"root": str(tiny), "name": "other.json"}, dim=12), 0)
    for name, rows in before.parts.items():
        assert torch.equal(rows, after.parts[name])
    rows = torch.cat([before.parts["train"], before.parts["validation"]])
    assert not torch.allclose(before.source[before.parts["test"]], after.source[before.parts["test"]])
    for name in ("question", "source", "own_centroid"):
        assert torch.equal(getattr(before, name)[rows], getattr(after, name)[rows])
    for i in range(2):
        assert (before.lexical[i][rows.numpy()] != after.lexical[i][rows.numpy()]).nnz == 0
    assert torch.equal(before.keywords, after.keywords) and torch.equal(before.centroids, after.centroids)
    assert torch.equal(fit_ridge(before, 1.0)[rows], fit_ridge(after, 1.0)[rows])
    kept, found = (
        {row["method"]: row["parameter"]["part"] for row in control_rows(task) if "parameter" in row}
        for task in (before, after)
    )
    assert kept == found and len(kept) == 3


def test_keywords_are_those_of_the_training_texts(tiny):
    task = load_task(TextConfig("squad", {"root": str(tiny), "name": "tiny.json"}, dim=12), 0)
    pairs = text.squad_pairs(tiny, "tiny.json")
    train = task.parts["train"]
    encoder = text.fit_encoder(pairs, train, "lsa", 12)
    torch.testing.assert_close(task.keywords, keyword_vectors(pairs.take(train), pairs.topics, encoder))


def test_shared_paragraphs_are_one_source(tiny):
    task = load_task(TextConfig("squad", {"root": str(tiny), "name": "tiny.json"}, dim=12), 0)
    assert len(task.topic) == TOPICS * PARAGRAPHS * QUESTIONS
    assert len(task.pool("all", "test")) == TOPICS * PARAGRAPHS
    assert len(task.pool("part", "test")) * QUESTIONS == len(task.parts["test"])


# ------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--trainer.batch_size=500"], 1, "batch_size must lie in 1.."),
        (["--steering.n_neg=70"], 1, "steering.n_neg=70 is larger than the pool of"),
        (["--data.dim=1000"], 1, "dim must be <"),
        (["--data.settings={root: /nowhere}"], 1, "github.com/google-deepmind/xquad"),
        (["--data.settings={folder: x}"], 2, "data.settings of squad: got an unexpected keyword argument 'folder'"),
        (["--data.settings={root: [3]}"], 2, 'data.settings of squad: Parser key "root"'),
        (["--data.name=docstrings", "--data.settings={min_pairs: x}"], 2, "data.settings of docstrings: Parser key"),
        (["--data.encoder=bag"], 2, "data.encoder"),
        (["--data.split_by=word"], 2, "data.split_by"),
        (["--steering.n_negs=3"], 2, "steering.n_negs"),
        (["--steering.variant=both"], 2, "steering.variant"),
        (["--controls=[oracle]"], 2, "controls"),
        (["--encoder.depth=3"], 2, "encoder"),  # a setting of runs on images
        (["--trainer.lr=1e9", "--trainer.clip_norm=1e9"], 1, "is nan at step"),
    ],
)
def test_faults_are_messages(tiny, capsys, extra, code, message):
    assert main(command(tiny, *extra)) == code
    assert message in capsys.readouterr().err
    assert not (tiny / "jasper_base.json").exists()


def test_a_checkpoint_belongs_to_its_texts(tiny, capsys):
    """The settings name a file, or the docstrings of whatever is installed: the texts may be others all the same."""
    assert main(command(tiny, "--controls=[]")) == 0
    path = next((tiny / "checkpoints" / "jasper_base").rglob("epoch_*.pt"))
    assert main(["evaluate", "--checkpoint", str(path)]) == 0
    lines = (tiny / "tiny.json").read_text()
    (tiny / "tiny.json").write_text(lines.replace(" which", " whose", 1))
    load_task_again()
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    assert f"the checkpoint {path} was trained on other texts" in capsys.readouterr().err
    assert main(command(tiny, "--controls=[]", f"--resume={path}")) == 1
    assert "belongs to a run with other settings, and going on would be neither run: texts: " in capsys.readouterr().err


@pytest.mark.parametrize("split_by", ["pair", "topic"])
def test_a_topic_with_one_paragraph_is_named(tiny, capsys, split_by):
    write(tiny / "lonely.json", [*articles(), ("Lonely", [("topic9x1 all1 all2", ["all1 which", "all2 which"])])])
    assert main(command(tiny, f"--data.split_by={split_by}", "--steering.keyword=0", name="lonely.json")) == 1
    message = capsys.readouterr().err
    assert "topic 'Lonely' has " in message and "1 topics have fewer than 2; leave them out" in message


@pytest.mark.slow
def test_the_command_as_a_user_types_it(tiny):
    call = [sys.executable, "-m", "jepa_lab", *command(tiny, "--controls=[]")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert [row["method"] for row in result(tiny)["runs"][0]["rows"]] == [f"jasper{name}" for name in MODEL]
