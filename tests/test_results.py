"""Can every number in results/ be traced to a configuration that still exists and to a chapter that shows it?"""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError

from jepa_lab.config import reread, resolve

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "results").glob("*.json"))
# Those of another kind than training runs say so, and have a test of their own: "speed" in test_benchmarks.py.
TRAINED = [path for path in RESULTS if "kind" not in json.loads(path.read_text())]
CONFIGS = ROOT / "jepa_lab" / "configs"

SCHEMA = {
    "name": str,
    "config": dict,
    "overrides": list,
    "seeds": list,
    "git_revision": str,
    "device": str,
    "core_seconds": float,
    "wall_seconds": float,
    "versions": dict,
    "runs": list,
}
RUN = {"seed": int, "overrides": list, "core_seconds": float, "rows": list}
SOME = {"case": str, "curves": dict}  # of a sweep over cases; with trainer.evaluate_every


def check_schema(result):
    """Complaints about the shape of one results file."""

    def wrong(record, schema, where, optional=()):
        complaints = [f"{where}: unknown key {key!r}" for key in record.keys() - schema.keys()]
        for key, kind in schema.items():
            allowed = (int, float) if kind is float else kind
            if key not in record:
                complaints += [f"{where}: no {key!r}"] if key not in optional else []
            elif not isinstance(record[key], allowed) or isinstance(record[key], bool):
                complaints.append(f"{where}: {key!r} is {type(record[key]).__name__}, not {kind.__name__}")
        return complaints

    complaints = wrong(result, SCHEMA, "result")
    runs = result.get("runs") or []
    if not runs:
        complaints.append("result: no runs")
    for i, run in enumerate(runs):
        complaints += wrong(run, RUN | SOME, f"runs[{i}]", SOME)
        if len(lengths := {len(column) for column in run.get("curves", {}).values()}) > 1:
            complaints.append(f"runs[{i}]: curves have the lengths {sorted(lengths)}")
        rows = run.get("rows") or []
        if not rows or not all(isinstance(row, dict) for row in rows):
            complaints.append(f"runs[{i}]: rows must be a list of at least one dict")
    if {run.get("seed") for run in runs} != set(result.get("seeds", [])):
        complaints.append("the seeds of the runs are not those of the result")
    sweep = result.get("config", {}).get("sweep", {})
    number = max(len(sweep.get("values") or sweep.get("cases") or [None]), 1) * len(result.get("seeds", []))
    if len(runs) != number:
        complaints.append(f"{len(runs)} runs of {number}: the sweep was interrupted, go on with --resume true")
    return complaints


def check_config(result, configs=CONFIGS):
    """The stored configuration is what its YAML file and its overrides mean now."""
    # The file is named like the result, unless the command line renamed it.
    path = configs / f"{result['name']}.yaml"
    paths = [path] if path.exists() else sorted(configs.glob("*.yaml"))
    now = [resolve(path, result["overrides"]) for path in paths if _fits(path, result)]
    if not now:
        return [f"no file in {configs.name}/ makes {result['name']!r}"]
    try:
        old, new = reread(result["config"]), now[0]
    except ArgumentError as error:
        return [f"{result['name']}: {error}: run it again"]
    if old in now:
        return []
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [f"{result['name']}: {', '.join(keys)} differ from the YAML now: run it again"]


def _fits(path, result):
    """Overrides belong to one objective; a file with another one would refuse them."""
    objective = (yaml.safe_load(path.read_text()).get("objective") or {}).get("name")
    return objective == result["config"].get("objective", {}).get("name")


def is_used(name, sources):
    """Some chapter names this result as a word of its own: "digits_jepa" is not used by "digits_jepa_targets"."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source) for source in sources)


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_result(path):
    result = json.loads(path.read_text())
    assert result["name"] == path.stem
    assert not (complaints := check_schema(result)), "\n".join(complaints)
    assert not (complaints := check_config(result)), "\n".join(complaints)


def test_only_known_kinds_escape_the_schema():
    assert {json.loads(path.read_text())["kind"] for path in set(RESULTS) - set(TRAINED)} <= {"speed"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_result_is_used_by_a_chapter(path):
    sources = [source.read_text() for source in (ROOT / "notebooks" / "src").glob("*.py")]
    assert is_used(path.stem, sources), f"no chapter uses results/{path.name}"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_resolves_and_is_named_like_its_file(path):
    assert resolve(path)["name"] == path.stem


# --- results made bad on purpose ------------------------------------------------------------------------------------


def good_result():
    return {
        "name": "digits_jepa",
        "config": resolve(CONFIGS / "digits_jepa.yaml", ["--trainer.epochs=2"]),
        "overrides": ["--trainer.epochs=2"],
        "seeds": [0, 1],
        "git_revision": "0" * 12,
        "device": "cpu",
        "core_seconds": 1.0,
        "wall_seconds": 1.0,
        "versions": {"torch": "2"},
        "runs": [
            {"seed": s, "overrides": [], "core_seconds": 1, "rows": [{"method": "jepa", "knn": 0.5}]} for s in (0, 1)
        ],
    }


def test_the_good_result_is_good():
    assert check_schema(good_result()) == []
    result = good_result()
    for run in result["runs"]:
        run |= {"case": "JEPA", "curves": {"step": [0, 1], "std": [0.5, 0.6]}}
    assert check_schema(result) == []
    assert check_config(good_result()) == []


@pytest.mark.parametrize("key", SCHEMA)
def test_a_missing_key_is_refused(key):
    result = good_result()
    del result[key]
    assert f"result: no {key!r}" in check_schema(result)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(extra=1),
        lambda r: r.update(core_seconds="1"),
        lambda r: r.update(runs=[]),
        lambda r: r["runs"][0].update(rows=[]),
        lambda r: r["runs"][0].update(rows=[1]),
        lambda r: r["runs"][0].pop("seed"),
        lambda r: r["runs"].pop(),
        lambda r: r["runs"][0].update(case=1),
        lambda r: r["runs"][0].update(curves={"step": [0, 1], "std": [0.5]}),
    ],
)
def test_a_bad_result_is_refused(spoil):
    result = copy.deepcopy(good_result())
    spoil(result)
    assert check_schema(result)


def test_a_stale_config_is_refused():
    result = good_result()
    result["config"]["trainer"]["lr"] = 9.0
    assert check_config(result) == ["digits_jepa: trainer differ from the YAML now: run it again"]
    result = good_result()
    result["overrides"] = []
    assert check_config(result)


def test_a_setting_that_did_not_exist_yet_has_its_default():
    """Else each new setting of the trainer would make every stored result stale."""
    result = good_result()
    del result["config"]["trainer"]["clip_norm"]
    assert check_config(result) == []
    result["config"]["trainer"]["clipping"] = 1.0  # one that exists no more
    assert "clipping" in check_config(result)[0]


def test_a_result_without_a_config_is_refused(tmp_path):
    assert check_config(good_result(), tmp_path) == [f"no file in {tmp_path.name}/ makes 'digits_jepa'"]


def test_a_longer_name_is_another_result():
    assert is_used("digits_jepa", ['load_result("digits_jepa")'])
    assert not is_used("digits_jepa", ['load_result("digits_jepa_targets")'])
