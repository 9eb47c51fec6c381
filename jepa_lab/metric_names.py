"""What does the name of a metric say? Its split, whether it is a loss, and whether more of it is better.

The convention: `validation/NAME` is the metric NAME on the validation split, `steering/VARIANT` is the share of the
questions that were steered in that way, and every other name is a metric of training.

Book: chapter 12.
"""

import re

VALIDATION = "validation/"
STEERING = "steering/"

# Terms of the losses of this package; a name made of such words alone is one of them, and so is all that says "loss".
_TERMS = {
    "total", "objective", "prediction", "reconstruction", "contrastive", "centroid", "vicreg", "sigreg", "regulariser",
    "regularizer", "invariance", "variance", "covariance", "redundancy", "alignment", "uniformity", "infonce",
    "ntxent", "crossentropy", "ce", "nll", "mse", "mae", "smooth", "l1", "jepa",
}  # fmt: skip
_HIGHER = {
    "accuracy", "acc", "recall", "precision", "f1", "mrr", "map", "ndcg", "hits", "auc", "auroc", "auprc", "r2", "knn",
    "top1", "top5", "top10",
}  # fmt: skip
_LOWER = {"loss", "losses", "error", "errors", "perplexity", "ece", "brier", "rmse"}


def split_of(name: str) -> tuple[str, str]:
    """The split of a metric and its plain name: `validation/loss` is `("validation", "loss")`."""
    if name.startswith(VALIDATION):
        return "validation", name.removeprefix(VALIDATION)
    return "train", name


def held_out(name: str) -> str:
    """The name of a metric as one of validation."""
    return name if name.startswith(VALIDATION) else VALIDATION + name


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", split_of(name)[1].lower()) if word]


def is_loss(name: str) -> bool:
    """Whether a metric is a loss or a term of one: `loss`, `centroid_loss`, `vicreg/variance`, but not `centroid_std`.

    True if one word of the name is `loss` and none speaks of an accuracy, or if all words are terms of known losses.
    """
    words = _words(name)
    if _HIGHER.intersection(words):
        return False
    if "loss" in words or "losses" in words or "".join(words) in _TERMS:  # such as cross_entropy
        return True
    return bool(words) and _TERMS.issuperset(words)


def higher_is_better(name: str) -> bool | None:
    """True for recall, accuracy and their like, False for losses and errors, None where the name does not tell.

    `grad_norm`, `tau`, a rank, a standard deviation or a share have no better end of their own.
    """
    words = _words(name)
    if _HIGHER.intersection(words):
        return True
    return False if is_loss(name) or _LOWER.intersection(words) else None
