"""Which paragraph answers the question? Rows of a file with the schema of SQuAD v1.1, such as XQuAD's English part.

Book: chapter 12.
"""

import hashlib
import json
import os
from pathlib import Path

XQUAD_HOME = "https://github.com/google-deepmind/xquad"
XQUAD_SHA256 = {"xquad.en.json": "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29"}
SCHEMA = "data[].title, data[].paragraphs[].context, data[].paragraphs[].qas[].question and .id, all of them strings"


def read_squad(root: str | Path | None, name: str) -> list[tuple[str, str, str, str]]:
    """(question, paragraph, title of the article, id of the question) for every question, in the order of the file.

    `root` defaults to the environment variable JEPA_LAB_DATA; the file is `root/name`.

    Raises: FileNotFoundError naming the public home page and the folder looked in; ValueError if the file is damaged,
        has another schema or holds no question.
    Paper: Rajpurkar et al., SQuAD, EMNLP 2016, arXiv:1606.05250; Artetxe et al., XQuAD, ACL 2020, arXiv:1910.11856.
    Book: chapter 12.
    """
    root = root if root is not None else os.environ.get("JEPA_LAB_DATA") or None
    if root is None:
        remedy = "pass root=FOLDER or set the environment variable JEPA_LAB_DATA"
        raise FileNotFoundError(f"{name} ({XQUAD_HOME}): no folder to look in; {remedy}")
    path = Path(root) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} not found in {path.parent}. Put the file there (XQuAD: {XQUAD_HOME}).")
    content = path.read_bytes()
    found, expected = hashlib.sha256(content).hexdigest(), XQUAD_SHA256.get(path.name)
    if expected is not None and found != expected:
        raise ValueError(f"{path} is corrupt: its sha256 is {found}, expected {expected}")
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, perhaps cut short: {error}") from error
    try:
        rows = [
            (qa["question"], paragraph["context"], article["title"], qa["id"])
            for article in data["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has not the schema of SQuAD v1.1 ({SCHEMA}): {type(error).__name__} {error}"
        ) from error
    if not all(isinstance(text, str) for row in rows for text in row):
        raise ValueError(f"{path} has not the schema of SQuAD v1.1 ({SCHEMA})")
    if not rows:
        raise ValueError(f"{path} holds no question")
    return rows
