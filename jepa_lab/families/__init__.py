"""What a run needs besides objective and trainer, for each kind of data: settings, loading, probing.

A family is a module with these functions; an objective names its family, `Objective.family`. A new kind of data is one
more module.

    add_arguments(parser)                           the settings that only such runs have
    check(config)                                   refuse those that do not fit together
    prepare(config, parts, seed) -> Prepared        data, model and batches of one run
    measure(config, parts, prepared, seed) -> rows  the trained model beside the control rows
    curves(before, trainer) -> dict of columns      what happened over training, for the results file
    line(rows) -> str                               the rows in one line of progress

`before` is what `evaluate` returned before the first step.
"""

from jepa_lab.families import images, retrieval, text

FAMILIES = {"images": images, "retrieval": retrieval, "text": text}
