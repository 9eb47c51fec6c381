"""What did it learn? Read-outs with labels, and the control rows without which no accuracy means anything.

Book: chapters 01, 04.
"""

import warnings
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from jepa_lab.metrics import effective_rank, normalized_std, rankme
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives import JEPA, Objective, Supervised, SupervisedConfig
from jepa_lab.training import Batch, TrainConfig, Trainer, seed_all

CONTROLS = ("chance", "raw input", "random init", "supervised")
Row = dict[str, str | float]
Splits = dict[str, Batch]
Represent = Callable[[Batch], dict[str, Tensor]]  # the features behind the columns "linear" and, maybe, "tokens"


def extract(
    objective: Objective, data: Batch, name: str = "pooled", batch_size: int = 512
) -> tuple[Float[Tensor, "n F"], Int[Tensor, " n"]]:
    """Frozen features of a whole split and the rows they belong to; rows without any real token are dropped.

    Shapes: returns features [n_kept, F] (tokens are flattened to N x D) and their row numbers [n_kept], on the CPU.
    """
    device = next(objective.parameters()).device
    n, parts = len(next(iter(data.values()))), []
    for start in range(0, n, batch_size):
        batch = {key: value[start : start + batch_size].to(device) for key, value in data.items()}
        parts.append(objective.represent(batch, name).flatten(1).float().cpu())
    features = torch.cat(parts)
    rows = features.isfinite().all(1).nonzero().flatten()
    return features[rows], rows


def linear_probe(
    train: Float[Tensor, "n F"],
    train_label: Int[Tensor, " n"],
    test: Float[Tensor, "m F"],
    test_label: Int[Tensor, " m"],
    C: float = 1.0,
) -> float:
    """Accuracy of a logistic regression on standardised frozen features.

    Standardising makes the probe fair to features of any scale and also blind to scale: features collapsed to a
    millionth of their size score the same. Read it together with a standard deviation.

    Raises: ValueError when the features are not finite.
    """
    _check_finite(train, test)
    return float(fit_linear(train, train_label, C).score(test.numpy(), test_label.numpy()))


def fit_linear(train: Float[Tensor, "n F"], label: Int[Tensor, " n"], C: float = 1.0) -> Pipeline:
    """The probe of `linear_probe`, fitted: scikit-learn's logistic regression behind a standard scaler.

    Raises: ValueError when the features are not finite.
    """
    _check_finite(train)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500))
    with warnings.catch_warnings():  # 500 iterations change no digit that is reported
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(train.numpy(), label.numpy())


def knn_probe(
    train: Float[Tensor, "n F"],
    train_label: Int[Tensor, " n"],
    test: Float[Tensor, "m F"],
    test_label: Int[Tensor, " m"],
    k: int = 20,
) -> float:
    """Accuracy of a vote of the k most similar training rows (cosine similarity). Nothing is trained: it sees the
    geometry of the features as it is.

    Raises: ValueError when the features are not finite or `k` exceeds the training rows.
    """
    _check_finite(train, test)
    if not 1 <= k <= len(train):
        raise ValueError(f"k must lie in 1..{len(train)} (the training rows), got {k}")
    probe = KNeighborsClassifier(n_neighbors=k, metric="cosine")
    return float(probe.fit(train.numpy(), train_label.numpy()).score(test.numpy(), test_label.numpy()))


def probe(
    objective: Objective,
    data: Splits,
    split: str = "test",
    method: str = "",
    tokens: bool = True,
    train_rows: int = 0,
    more: Callable[[Represent], Row] | None = None,
) -> Row:
    """One row of a results table: probes trained on the training split, scored on `split`.

    Keys: `linear` and `knn` on the pooled features, `tokens` (linear on all tokens, when asked for), `std`, `rank` and
    `rankme` (`metrics.normalized_std`, `metrics.effective_rank`, `metrics.rankme` of the pooled features of `split`),
    and `dropped`, the rows of both splits that had nothing to represent. Accuracies are shares in [0, 1]. Choose
    settings on "validation"; "test" is for the result. `train_rows` > 0 trains the probes on the first so many rows.
    `more` adds columns of its own, as `image_probes.read_outs` does.
    """
    data = first_rows(data, train_rows)
    row = _probe_features(*extract(objective, data["train"]), *extract(objective, data[split]), data, split)
    if tokens and "tokens" in objective.representations:
        train, i = extract(objective, data["train"], "tokens")
        test, j = extract(objective, data[split], "tokens")
        row["tokens"] = linear_probe(train, data["train"]["label"][i], test, data[split]["label"][j])

    def represent(batch: Batch) -> dict[str, Tensor]:
        names = {"linear": "pooled"} | ({"tokens": "tokens"} if "tokens" in row else {})
        return {column: extract(objective, batch, name)[0] for column, name in names.items()}

    return {"method": method or type(objective).__name__} | row | (more(represent) if more else {})


def raw_features(data: Batch) -> Float[Tensor, "n F"]:
    """The input itself as a feature vector: what a probe reaches without any encoder."""
    return data["image"].flatten(1).float()


def control_rows(
    data: Splits,
    make_encoder: Callable[[], TokenEncoder],
    config: TrainConfig,
    seed: int = 0,
    split: str = "test",
    rows: Iterable[str] = CONTROLS,
    tokens: bool = True,
    train_rows: int = 0,
    more: Callable[[Represent], Row] | None = None,
) -> list[Row]:
    """The rows every table needs beside the method's own.

    `chance`: always the most frequent training label. `raw input`: the probes on the pixels. `random init`: the same
    encoder, untrained. `supervised`: the same encoder trained with the labels under the same recipe, on all rows
    whatever `train_rows` says, which limits the probes alone. `more` adds columns to every row, as in `probe`.

    Raises: ValueError for an unknown row name.
    """
    result, everything = [], data["train"]
    data = first_rows(data, train_rows)
    for name in rows:
        if name == "chance":
            common = data["train"]["label"].bincount().argmax()
            share = (data[split]["label"] == common).float().mean().item()
            row = {"method": name, "linear": share, "knn": share, "tokens": share}
            if more:  # of features that say nothing, a probe learns how frequent the classes are
                row |= _for_tokens_too(more(lambda batch: {"linear": torch.zeros(len(batch["label"]), 1)}))
        elif name == "raw input":
            train, test = raw_features(data["train"]), raw_features(data[split])
            everyone = [torch.arange(len(x)) for x in (train, test)]
            row = {"method": name} | _probe_features(train, everyone[0], test, everyone[1], data, split)
            row["tokens"] = row["linear"]
            if more:
                row |= _for_tokens_too(more(lambda batch: {"linear": raw_features(batch)}))
        elif name == "random init":
            seed_all(seed)
            row = probe(JEPA(make_encoder(), seed=seed), data, split, name, tokens, more=more)
        elif name == "supervised":
            seed_all(seed)
            classes = int(data["train"]["label"].max()) + 1
            objective = Supervised(make_encoder(), SupervisedConfig(n_classes=classes), seed=seed)
            Trainer(objective, everything, config).fit()
            row = probe(objective, data, split, name, tokens, more=more)
        else:
            raise ValueError(f"unknown control row {name!r}; known: {', '.join(CONTROLS)}")
        result.append(row)
    return result


def collect(rows: Iterable[Row], label: str = "method") -> list[dict[str, str | list[float]]]:
    """Rows of single runs as one row per method, in order of appearance, with a list of values per metric: what
    `plots.table` and `plots.dots` draw as mean and standard deviation."""
    collected: dict[str, dict[str, str | list[float]]] = {}
    for row in rows:
        one = collected.setdefault(str(row[label]), {label: row[label]})
        for key, value in row.items():
            if key != label:
                one.setdefault(key, []).append(float(value))
    return list(collected.values())


def _for_tokens_too(row: Row) -> Row:
    """A row without tokens, whose one linear read-out stands in both columns."""
    return row | {name.replace("linear", "tokens"): score for name, score in row.items() if name.startswith("linear")}


def first_rows(data: Splits, rows: int) -> Splits:
    """The same splits with at most so many training rows; 0 keeps all."""
    return data if rows == 0 else data | {"train": {key: value[:rows] for key, value in data["train"].items()}}


def _probe_features(train, i, test, j, data: Splits, split: str) -> Row:
    train_label, test_label = data["train"]["label"][i], data[split]["label"][j]
    dropped = len(data["train"]["label"]) - len(i) + len(data[split]["label"]) - len(j)
    return {
        "linear": linear_probe(train, train_label, test, test_label),
        "knn": knn_probe(train, train_label, test, test_label),
        "std": normalized_std(test).item(),
        "rank": effective_rank(test).item(),
        "rankme": rankme(test).item(),
        "dropped": dropped,
    }


def _check_finite(*features: Tensor) -> None:
    for x in features:
        if not x.isfinite().all():
            raise ValueError("features contain NaN or infinity: drop rows without content with probes.extract first")
