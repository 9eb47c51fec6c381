"""`python -m jepa_lab train --config jepa_lab/configs/NAME.yaml`: the one command that trains outside a notebook."""

import json
import shlex
import signal
import sys

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from jepa_lab.checkpoints import CheckpointError
from jepa_lab.config import parse
from jepa_lab.distributed import rank, world_size
from jepa_lab.experiment import checkpoint_root, evaluate, restore, run
from jepa_lab.explain_text import TextExplainer, page
from jepa_lab.style import use_style

USAGE = """usage: python -m jepa_lab train --config jepa_lab/configs/NAME.yaml [--trainer.epochs 2] [--seeds 0 1 2]
                                [--objective.mask.ratio 0.5] [--out results] [--resume true | --resume CHECKPOINT]
       python -m jepa_lab evaluate --checkpoint CHECKPOINT [--split test] [--json]
       python -m jepa_lab explain --checkpoint CHECKPOINT --question "TEXT" [--topic NAME] [--json] [--plot FILE]

train     trains, measures beside the control rows, and writes results/NAME.json. Checkpoints go to
          results/checkpoints/NAME; --resume true goes on after an interruption.
          `train --config FILE --help` lists every setting with its default, `--print_config` the settings of a run.
evaluate  measures the model in a checkpoint, as its run did. A run with trainer.monitor measured best.pt.
explain   says why a model of texts predicts what it predicts for a question, steered to a topic or not."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command, *rest = arguments
    commands = {"train": train_command, "evaluate": evaluate_command, "explain": explain_command}
    if command not in commands:
        print(f"unknown command {command!r}\n{USAGE}", file=sys.stderr)
        return 2
    return commands[command](rest)


def train_command(arguments: list[str]) -> int:
    try:
        config = parse(arguments)
    except (ArgumentError, ValueError, OSError) as error:
        return _complain(error, 2)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        path = run(config, arguments)
        if rank() == 0:
            print(f"wrote {path}")
    except (ValueError, ImportError, OSError, FloatingPointError, CheckpointError) as error:
        # Settings that do not fit the data (a patch that does not divide the image), data that is not there, a run that
        # diverged, a full disk: the message says it all, a traceback would hide it.
        return _complain(error, 1)
    except KeyboardInterrupt as stop:
        if rank() == 0:  # of several processes one speaks
            print(f"\nstopped; {_how_to_go_on(config, arguments)}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    return 0


def _how_to_go_on(config: Namespace, arguments: list[str]) -> str:
    if config.checkpoints == "none":
        return "without checkpoints the run in progress is lost"
    kept = [a for i, a in enumerate(arguments) if a != "--resume" and arguments[i - 1 : i] != ["--resume"]]
    kept = [a for a in kept if not a.startswith("--resume=")]
    start = ["python"] if world_size() == 1 else ["torchrun", f"--nproc_per_node={world_size()}"]
    command = shlex.join([*start, "-m", "jepa_lab", "train", *kept, "--resume", "true"])
    return f"checkpoints are in {checkpoint_root(config)}. Go on with\n{command}"


def _terminate(number: int, frame: object) -> None:
    """A polite request to stop is treated as Ctrl-C is."""
    raise KeyboardInterrupt(number)


def evaluate_command(arguments: list[str]) -> int:
    parser = ArgumentParser("python -m jepa_lab evaluate", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=str, required=True, help="the file that a training run wrote")
    parser.add_argument("--split", type=str, choices=["test", "validation"], help="default: that of the run")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        return _complain(error, 2)
    try:
        rows = evaluate(config.checkpoint, config.split)
    except (ArgumentError, ValueError, ImportError, OSError, CheckpointError) as error:
        return _complain(error, 1)
    if config.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        print(f"{row['method']}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    return 0


def explain_command(arguments: list[str]) -> int:
    parser = ArgumentParser("python -m jepa_lab explain", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=str, required=True, help="the file that a training run wrote")
    parser.add_argument("--question", type=str, required=True, help="what to look for, in words")
    parser.add_argument("--topic", type=str, help="steer to this topic; default: no steering")
    parser.add_argument("--neighbours", type=PositiveInt, default=3, help="how many known pairs to name")
    parser.add_argument("--json", action="store_true", help="print the explanation as JSON")
    parser.add_argument("--plot", type=str, help="draw the explanation into this file, such as why.png")
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        return _complain(error, 2)
    try:
        settings, _, prepared, _ = restore(config.checkpoint)
        told = TextExplainer.of_run(settings, prepared, config.neighbours).explain(config.question, config.topic)
        if config.plot:
            use_style()
            told.plot().savefig(config.plot)
    except (ArgumentError, ValueError, ImportError, OSError, CheckpointError) as error:
        return _complain(error, 1)
    print(told.to_json() if config.json else page(told))
    return 0


def _complain(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
