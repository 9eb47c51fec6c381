"""What a run needs besides objective and trainer, for each kind of data: settings, loading, probing.

A family is a module with these functions; an objective names its family, `Objective.family`. A new kind of data is one
more module.

    add_arguments(parser)                           the settings that only such runs have
    check(config)                                   refuse those that do not fit together
    prepare(config, parts, seed) -> Prepared        data, model and batches of one run
    measure(config, parts, prepared, seed) -> rows  the trained model beside the control rows
    curves(before, trainer) -> dict of columns      what happened over training, for the results file
    line(rows) -> str                               the rows in one line of progress

`before` is what `evaluate` returned before the first step. The objectives for images take any tokens: where the data
are clinical records, the family is that of the data (`family_name`).
"""

from jepa_lab.families import clinical, images, polar, retrieval, text

FAMILIES = {"clinical": clinical, "images": images, "polar": polar, "retrieval": retrieval, "text": text}


def family_name(own: str, data: str | None) -> str:
    """The family of a run: that of its objective, or for those on images that of clinical data."""
    return "clinical" if own == "images" and data in clinical.DATASETS else own
