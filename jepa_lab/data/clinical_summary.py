"""A stay without any encoder: statistics of its channels, and what is known of the patient.

Book: chapter 09.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.data.clinical import Records


def summary(records: Records) -> Float[Tensor, "n S"]:
    """Mean, minimum, maximum and last value of every channel, and log(1 + count): no encoder at all.

    A channel that a stay lacks has zeros, the mean of a standardised channel.

    Shapes: n stays, F channels -> [n, 5 F], statistic by statistic.
    Book: chapter 09.
    """
    n, f = len(records), len(records.features)
    cell = records.row * f + records.feature
    count = torch.bincount(cell, minlength=n * f)

    def reduced(how: str) -> Tensor:
        return torch.zeros(n * f).scatter_reduce(0, cell, records.value, how, include_self=False)

    last = torch.zeros(n * f)
    order = torch.arange(len(cell))
    latest = torch.full((n * f,), -1).scatter_reduce(0, cell, order, "amax", include_self=False)
    last[latest >= 0] = records.value[latest[latest >= 0]]  # of a stay's observations, sorted by time
    parts = [reduced("mean"), reduced("amin"), reduced("amax"), last, count.float().log1p()]
    return torch.stack(parts).view(5, n, f).transpose(0, 1).flatten(1)


def descriptors(records: Records, train: Records) -> Float[Tensor, "n S"]:
    """What is known of a stay at its start: age, gender, height and weight standardised by the training stays, zeros
    where not known, whether height and weight are known, and the ICU type as four columns.

    Shapes: n stays -> [n, 10].
    Book: chapter 09.
    """
    known = train.static[:, [0, 1, 2, 4]]
    mean = known.nanmean(0)
    std = (known - mean).square().nanmean(0).sqrt().clamp(min=1e-6)
    numbers = records.static[:, [0, 1, 2, 4]]
    missing = numbers[:, 2:].isnan().float()
    unit = records.static[:, 3].nan_to_num(0)[:, None] == torch.arange(1, 5)
    return torch.cat([((numbers - mean) / std).nan_to_num(0), missing, unit.float()], dim=1)
