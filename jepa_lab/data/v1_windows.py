"""From a long recording to batches: windows with a warm-up, in which a model fills its memory and is not scored.

Book: chapter 15.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lab.batches import Batch
from jepa_lab.data.v1 import V1Recording


class MovieWindows:
    """`batches(epoch)` for the trainer, and `in_order()` to evaluate: windows of `length` frames, the first `warm_up`
    of them not scored.

    Windows overlap by the warm-up, so that each later frame is scored exactly once. Never scored are the warm-up of the
    first window and the frames without gaze, which `blinks` counts.

    With `share` below 1 only so large a share of the windows, the same in all epochs, gives its counts. An epoch has as
    many steps as the whole recording would, so that models of all shares train equally long. `unlabelled` adds to each
    batch so many of the *other* windows: their movie and gaze are shown, their counts are not (zeros, not scored).

    Shapes of a batch: movie [B, T, H, W], gaze [B, T, 2], counts and rate [B, T, U], scored Bool[B, T], with
        B = batch_size + unlabelled.
    Raises: ValueError for a recording shorter than a window, a length within the warm-up, a share outside (0, 1], or
        when there is not one batch of windows, or no window left to show unlabelled.
    Book: chapter 15.
    """

    def __init__(
        self,
        recording: V1Recording,
        batch_size: int,
        length: int = 72,
        warm_up: int = 24,
        share: float = 1.0,
        seed: int = 0,
        unlabelled: int = 0,
    ):
        frames = len(recording.movie)
        if not 0 <= warm_up < length:
            raise ValueError(f"warm_up must lie in [0, length = {length}), got {warm_up}")
        if frames < length:
            raise ValueError(f"length={length} frames is longer than the recording of {frames}")
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        self.recording, self.batch_size, self.unlabelled = recording, batch_size, unlabelled
        self.length, self.warm_up, self.seed = length, warm_up, seed
        new = length - warm_up
        # The last window ends with the recording, and scores what the one before it has left.
        self.starts = (torch.arange(-(-(frames - warm_up) // new)) * new).clamp(max=frames - length)
        seen = ~recording.gaze.isnan().any(1)
        self.blinks = int((~seen).sum())
        self.scored = self._windows(seen, self.starts)
        self.scored[:, :warm_up] = False
        if len(self.starts) > 1:
            done = int(self.starts[-2] + length - self.starts[-1])
            self.scored[-1, :done] = False
        order = torch.randperm(len(self.starts), generator=torch.Generator().manual_seed(seed))
        labelled = round(share * len(order))
        self.labelled, self.others = order[:labelled].sort().values, order[labelled:].sort().values
        if len(self.starts) < batch_size or not labelled:
            raise ValueError(
                f"batch_size={batch_size} and share={share}: the recording has only {len(self.starts)} windows"
            )
        if unlabelled < 0 or unlabelled > len(self.others):
            raise ValueError(
                f"unlabelled must lie in 0..{len(self.others)}, the windows that share={share} leaves, got {unlabelled}"
            )

    def __call__(self, epoch: int) -> "WindowEpoch":
        """The batches of an epoch: they depend on the seed and the epoch alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        steps = len(self.starts) // self.batch_size
        batches = _dealt(self.labelled, steps, self.batch_size, generator)
        return WindowEpoch(self, batches, _dealt(self.others, steps, self.unlabelled, generator))

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        """All windows in their order: every frame that can be scored, once, whatever the share."""
        for index in torch.arange(len(self.starts)).split(batch_size or self.batch_size):
            yield self.take(index)

    def take(self, index: Int[Tensor, " B"], shown: int = 0) -> Batch:
        """These windows as a batch; the last `shown` of them without their counts."""
        at, scored = self.starts[index], self.scored[index]
        batch = {
            name: self._windows(getattr(self.recording, name), at) for name in ("movie", "gaze", "counts", "rate")
        } | {"scored": scored}
        if shown:
            for name in ("counts", "rate", "scored"):
                batch[name][-shown:] = 0
        return batch

    def _windows(self, x: Float[Tensor, "T *rest"] | Tensor, at: Int[Tensor, " B"]) -> Tensor:
        return x[at[:, None] + torch.arange(self.length)]


class WindowEpoch:
    """The batches of one epoch; knows its length."""

    def __init__(self, windows: MovieWindows, labelled: Int[Tensor, "N B"], others: Int[Tensor, "N K"]):
        self.windows, self.labelled, self.others = windows, labelled, others

    def __len__(self) -> int:
        return len(self.labelled)

    def __iter__(self) -> Iterator[Batch]:
        for index, more in zip(self.labelled, self.others, strict=True):
            yield self.windows.take(torch.cat([index, more]), len(more))


def _dealt(cards: Tensor, steps: int, size: int, generator: torch.Generator) -> Int[Tensor, "steps size"]:
    """`steps` hands of `size` from shuffled packs: all have been dealt before one comes again."""
    packs = -(-steps * size // max(len(cards), 1))
    dealt = [cards[torch.randperm(len(cards), generator=generator)] for _ in range(packs)]
    return torch.cat([cards[:0], *dealt])[: steps * size].view(steps, size)
