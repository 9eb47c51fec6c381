"""A training run as data: what `python -m jepa_lab train` reads from a YAML file and the command line.

The configs of the parts are frozen dataclasses next to the code they configure; this file only puts them together. The
objective's fields depend on its name, so a setting that does not belong to the chosen objective is an error, as is any
unknown key or wrong type: the message names the key.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from jepa_lab.families import FAMILIES, family_name
from jepa_lab.monitoring import MonitoringConfig
from jepa_lab.objectives import objective_class
from jepa_lab.training import TrainConfig


@dataclass(frozen=True)
class SweepConfig:
    """Repeat the run for every value of one setting, named with dots: `key: objective.mask.ratio`.

    A value may also be a list as long as `key` is, when several settings move together: `key: a.b, c.d`. Runs that
    differ in more than their values are named `cases` instead, each with settings of its own, another objective
    included: `cases: {collapsed: {objective.name: jepa, objective.target: none}}`.
    """

    key: str = ""
    values: list[Any] = field(default_factory=list)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def overrides(self) -> dict[str, list[str]]:
        """The command-line overrides of each repetition by its name; one without any when nothing is swept."""
        if self.cases:
            if self.key:
                raise ValueError(f"sweep: give either key (got {self.key!r}) or cases (got {', '.join(self.cases)})")
            return {name: [_argument(*item) for item in (case or {}).items()] for name, case in self.cases.items()}
        if not self.key:
            return {"": []}
        if not self.values:
            raise ValueError(f"sweep.values must hold at least one value of sweep.key={self.key!r}, got none")
        keys = [key.strip() for key in self.key.split(",")]
        result = {}
        for value in self.values:
            row = value if len(keys) > 1 and isinstance(value, list) else [value]
            if len(row) != len(keys):
                raise ValueError(f"sweep.values: {value} must have {len(keys)} entries, as sweep.key={self.key!r} has")
            arguments = [_argument(key, part) for key, part in zip(keys, row, strict=True)]
            result[" ".join(arguments)] = arguments
        return result


def _argument(key: str, value: Any) -> str:
    """A setting as the command line takes it; dicts, lists and booleans in YAML's flow style."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return f"--{key}={text}"


@cache  # a sweep over fifty values parses as many command lines
def make_parser(objective: str, data: str | None = None, use_contrastive: bool | None = None) -> ArgumentParser:
    """The parser of a run with this objective, on the data set of this name where that decides about the settings, as
    `use_contrastive` (None = not given) does.

    Raises: ValueError for an unknown objective (lists the known ones), or one that `use_contrastive` does not fit.
    """
    try:
        cls = objective_class(objective, use_contrastive)
    except ValueError as error:
        raise ValueError(f"objective.name: {error}") from None
    about = f"Train {objective!r}, probe it beside the control rows, and write results/NAME.json."
    # No abbreviations: --trainer.epoch would pass for --trainer.epochs, and a typo for a setting.
    parser = ArgumentParser("python -m jepa_lab train", description=about, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file, such as jepa_lab/configs/digits_jepa.yaml")
    parser.add_argument("--name", type=str, required=True, help="the result is written to results/NAME.json")
    parser.add_argument("--objective.name", type=str, default=objective)
    parser.add_class_arguments(cls.Config, "objective")
    FAMILIES[family_name(cls.family, data)].add_arguments(parser)
    parser.add_class_arguments(TrainConfig, "trainer", skip={"seed"})
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", type=Literal["test", "validation"], default="test", help="choose on validation")
    parser.add_class_arguments(SweepConfig, "sweep")
    parser.add_argument("--out", type=str, default="results", help="the folder of the results file")
    parser.add_class_arguments(MonitoringConfig, "monitoring")
    parser.add_argument(
        "--checkpoints", type=str, default="auto", help="their folder; auto = beside the results, none = write none"
    )
    parser.add_argument(
        "--resume",
        type=bool | str,
        default=False,
        help="true = keep the runs in the results file and go on from the last checkpoint; or the PATH of a checkpoint",
    )
    return parser


def parse(arguments: list[str]) -> Namespace:
    """The resolved configuration of a command line such as `--config FILE --trainer.epochs 2`.

    Raises: jsonargparse.ArgumentError for unknown keys and wrong types, ValueError for values out of range.
    """
    parser = make_parser(*_names(arguments))
    _check_sections(parser, arguments)
    config = parser.parse_args(arguments)
    family(config).check(config)
    overrides = build(config).sweep.overrides()
    if isinstance(config.resume, str) and len(overrides) * len(config.seeds) > 1:
        raise ValueError(
            f"resume: {config.resume} is the checkpoint of one run, and this command makes "
            f"{len(overrides) * len(config.seeds)}; name its seed (--seeds 0) and its settings, or use --resume true"
        )
    for extra in overrides.values():
        repetition(arguments, extra)  # refuse a bad value now, not after the first run of a sweep
    return config


def repetition(arguments: list[str], extra: list[str]) -> Namespace:
    """The configuration of one repetition of a sweep, whose overrides may name another objective."""
    arguments = [*arguments, *extra]
    config = make_parser(*_names(arguments)).parse_args(arguments)
    build(config)
    return config


def build(config: Namespace) -> Namespace:
    """The same configuration with the parts' dataclasses in place: `.objective`, `.trainer`, `.sweep`, ..."""
    config = config.clone()
    parser = _parser_of(config)
    config.objective.pop("name")
    return parser.instantiate(config)


def family(config: Namespace) -> ModuleType:
    """The module of `jepa_lab.families` that the configured objective belongs to."""
    return FAMILIES[family_name(objective_class(config.objective.name).family, config.get("data.name"))]


def resolve(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """What a YAML file and overrides mean now, as plain data: the `config` that a results file must store."""
    return stored(parse(["--config", str(path), *(overrides or [])]))


def reread(data: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration as it reads today: settings that did not exist yet take their default, which must
    therefore do what the code did before it had the setting.

    Raises: jsonargparse.ArgumentError for settings that no longer exist.
    """
    return stored(parser_of(data).parse_object(data))


def parser_of(data: dict[str, Any]) -> ArgumentParser:
    """The parser of a stored configuration."""
    objective = data["objective"]
    return make_parser(objective["name"], data.get("data", {}).get("name"), objective.get("use_contrastive"))


def stored(config: Namespace) -> dict[str, Any]:
    """A configuration as plain data for a results file, without where it was read from and how it was written."""
    data = yaml.safe_load(_parser_of(config).dump(config))
    return {key: value for key, value in data.items() if key not in ("config", "out", "resume", "checkpoints")}


def _parser_of(config: Namespace) -> ArgumentParser:
    return make_parser(config.objective.name, config.get("data.name"), config.objective.get("use_contrastive"))


def _names(arguments: list[str]) -> tuple[str, str | None, bool | None]:
    """Read first what decides which settings exist: the names of objective and data, and `use_contrastive`."""
    found: dict[str, str | None] = {"objective": None, "data": None}
    use_contrastive = None
    for key, value in _given(arguments):
        if key == "--objective.use_contrastive":
            use_contrastive = {"true": True, "false": False}.get(value.lower())  # for others the parser has an error
        if key == "--config":
            content = _read(value)
            for part in found:
                section = content.get(part) or {}
                if not isinstance(section, dict):
                    raise ValueError(f"{part} in {value} must be a section, `{part}: {{name: ...}}`, got {section!r}")
                found[part] = section.get("name", found[part])
                if not isinstance(found[part], str | None):
                    what = "an objective" if part == "objective" else "a data set"
                    raise ValueError(f"{part}.name in {value} must be the name of {what}, got {found[part]!r}")
                if part == "objective":
                    use_contrastive = section.get("use_contrastive", use_contrastive)
        else:
            for part in found:
                if key == f"--{part}.name":
                    found[part] = value
    return found["objective"] or "jepa", found["data"], use_contrastive if isinstance(use_contrastive, bool) else None


def _check_sections(parser: ArgumentParser, arguments: list[str]) -> None:
    """Raises: ValueError for a value where the parser has a section of settings; the parser itself would stumble."""
    sections = [key for key, value in parser.get_defaults().as_dict().items() if isinstance(value, dict)]
    for key, path in _given(arguments):
        if key == "--config":
            found = _read(path)
            for name in sections:
                if not isinstance(found.get(name, {}), dict):
                    raise ValueError(f"{name} in {path} must be a section of settings, got {found[name]!r}")


def _given(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """The options of a command line with their (first) values."""
    for i, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        yield key, value or (arguments[i + 1] if i + 1 < len(arguments) else "")


def _read(path: str) -> dict[str, Any]:
    """Raises: ValueError naming the file when it does not hold settings, OSError when it cannot be read."""
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold settings, lines such as `name: my_run`, got {data!r}")
    return data
