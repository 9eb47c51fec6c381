"""Tokens: what a batch of them is, dropping the hidden ones before the encoder, and putting them back afterwards.

Book: chapters 03, 08.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Series(NamedTuple):
    """When each token was observed, and what.

    Shapes:
        time: Float[B, N], hours.
        feature: Int[B, N], the number of the channel.
    """

    time: Tensor
    feature: Tensor


class Tokens(NamedTuple):
    """A batch as tokens, before any masking.

    Shapes:
        x: [B, N, D], the embedded tokens (content and position).
        valid: Bool[B, N], True = real token, False = padding.
        query: [B, N, D], what identifies a slot without its content: position, feature, time.
        raw: [B, N, R], what the token held before embedding (pixels, a lab value): the target of reconstruction.
        series: the time and the feature of each token where the tokens are observations, else None.
    """

    x: Tensor
    valid: Tensor
    query: Tensor
    raw: Tensor
    series: Series | None = None


def take_visible(
    x: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"], k: int | None = None
) -> tuple[Float[Tensor, "B K D"], Bool[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Gather the kept tokens of each row, in slot order, and pad the rows to the longest one with zeros.

    The encoder then never spends time on hidden tokens, and cannot see them. `k` is the length to pad to, at least
    the longest row; giving it spares a GPU the round trip that finding the longest row costs.

    Shapes: x [B, N, D], keep Bool[B, N]; returns x [B, K, D], valid Bool[B, K], index Int[B, K] into N.
    Raises: ValueError when no row keeps a token, or (checked on the CPU) when `k` would cut a row.
    Book: chapter 03.
    """
    if k is None:
        k = int(keep.sum(1).max()) if len(keep) else 0
        if k == 0:
            raise ValueError("keep: no row keeps any token (is the whole batch padding?)")
    elif keep.device.type == "cpu" and len(keep) and int(keep.sum(1).max()) > k:
        raise ValueError(f"k={k} is shorter than the longest row, which keeps {int(keep.sum(1).max())} tokens")
    index, valid = kept_slots(keep, k)
    x = gather_tokens(x, index)
    return x if nothing_padded(valid) else x.masked_fill(~valid[..., None], 0.0), valid, index


def kept_slots(keep: Bool[Tensor, "B N"], k: int) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The slots of each row's kept tokens in order, and which of the K are one: a shorter row is padded with any slots.

    Shapes: keep Bool[B, N], K = `k` at least the longest row; returns Int[B, K] in 0..N-1, Bool[B, K].
    Book: chapter 03.
    """
    count = keep.sum(1, keepdim=True)
    place = torch.arange(k, device=keep.device)
    if keep.device.type == "cpu":  # a fifth of the time; a GPU would have to stop and say how many tokens there are
        slot = torch.from_numpy(np.flatnonzero(keep.numpy()))  # of all kept tokens, row after row, rows end to end
        start = count.cumsum(0) - count
        # The last row may look beyond the end: for one slot more, whichever.
        slot = F.pad(slot, (0, 1)).index_select(0, (start + place).clamp(max=len(slot)).flatten()).view(len(keep), k)
        rows = torch.arange(len(keep))[:, None] * keep.shape[1]
        index = (slot - rows).clamp(0, keep.shape[1] - 1)
    else:
        index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :k]
    return index, place < count


def put_back(
    x: Float[Tensor, "B K D"],
    valid: Bool[Tensor, "B K"],
    index: Int[Tensor, "B K"],
    n_tokens: int,
    fill: float | Tensor = 0.0,
) -> Float[Tensor, "B N D"]:
    """Scatter gathered tokens to their slots; every other slot takes `fill` (a number, or a tensor that broadcasts
    to [B, N, D], such as a mask token with position codes).

    Shapes: x [B, K, D], valid Bool[B, K], index Int[B, K] in 0..N-1; returns [B, N, D].
    Raises: ValueError when an index lies outside the N slots (checked on the CPU only).
    Book: chapter 03.
    """
    if index.device.type == "cpu" and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < n_tokens:
        raise ValueError(f"index must lie in 0..{n_tokens - 1}, got {int(index.min())}..{int(index.max())}")
    batch, _, dim = x.shape
    fill = torch.as_tensor(fill, dtype=x.dtype, device=x.device).expand(batch, n_tokens, dim)
    out = torch.cat([fill, fill[:, :1]], dim=1)
    # Padded slots go to an extra slot that is cut off: sent anywhere else they would overwrite a real token.
    index = torch.where(valid, index, n_tokens)
    return out.scatter(1, index[..., None].expand(-1, -1, dim), x)[:, :n_tokens]


def gather_tokens(x: Float[Tensor, "B N D"], index: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """x[b, index[b, k]] for every row b."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def nothing_padded(valid: Bool[Tensor, "B N"]) -> bool:
    """Whether all that treats padding can be left out. Not on a GPU: asking it would stall the step, for less gain."""
    return valid.device.type == "cpu" and bool(valid.all())
