"""`python -m jepa_lab train --config jepa_lab/configs/NAME.yaml`: the one command that trains outside a notebook."""

import sys

from jsonargparse import ArgumentError

from jepa_lab.config import parse
from jepa_lab.experiment import run

USAGE = """usage: python -m jepa_lab train --config jepa_lab/configs/NAME.yaml [--trainer.epochs 2] [--seeds 0 1 2]
                                [--objective.mask.ratio 0.5] [--print_config] [--out results] [--help]

Trains, probes beside the control rows, and writes results/NAME.json.
`train --config FILE --help` lists every setting with its default."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command, *rest = arguments
    if command != "train":
        print(f"unknown command {command!r}\n{USAGE}", file=sys.stderr)
        return 2
    try:
        config = parse(rest)
    except (ArgumentError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(f"wrote {run(config, rest)}")
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        # Settings that do not fit the data (a patch that does not divide the image), data that is not there, a run that
        # diverged: the message says it all, a traceback would hide it.
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
