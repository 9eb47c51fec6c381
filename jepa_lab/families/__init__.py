"""What a run needs besides objective and trainer, for each kind of data: settings, loading, probing.

A family is a module with the functions `add_arguments(parser)`, `check(config)`, `run_seed(config, parts, seed)` and
`line(row)`; an objective names its family, `Objective.family`. A new kind of data is one more module.
"""

from jepa_lab.families import images, text

FAMILIES = {"images": images, "text": text}
