"""Pairs whose explanation is known, because it was planted: subspace, residual size, and what steering must tell.

A question *names* one topic or a mixture of two, as "Linear" does, and its topic is drawn from what it names. So no
router can know it from the question alone better than the shares do, and how much a steering signal has to say is known
in nats.

Book: chapter 13.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """Row i is a pair. `residual` is the distance of its source from its topic's anchor; `named` [n, K] the shares in
    which its question names the topics; `effect` the nats that the topic's name adds, -log named[topic]."""

    question: Float[Tensor, "n D"]
    source: Float[Tensor, "n D"]
    topic: Int[Tensor, " n"]
    anchors: Float[Tensor, "K D"]
    named: Float[Tensor, "n K"]
    residual: Float[Tensor, " n"]
    effect: Float[Tensor, " n"]


def planted_pairs(
    n: int = 2400, k: int = 6, dim: int = 32, noise: float = 0.02, size: float = 1.0, seed: int = 0
) -> Planted:
    """n pairs in k topics.

        share m ~ U(0, 1/2),   named: 1 - m of topic a, m of another topic b,   topic ~ named
        source   = (anchor_topic + r u) / |.|,                      r ~ U(0, size)
        question = (1 - m) anchor_a + m anchor_b + r u + noise, at unit length

    Anchors are orthonormal, u is a random direction at right angles to all of them. The exact KL divergence between
    knowing the topic and knowing only what the question names is `effect`.

    Shapes: -> `Planted`, question and source of unit length.
    Raises: ValueError unless n >= 1, k >= 2, dim > k, noise >= 0 and size > 0.
    Book: chapter 13.
    """
    if not (n >= 1 and k >= 2 and dim > k):
        raise ValueError(f"planted pairs need n >= 1, k >= 2 and dim > k, got n={n}, k={k}, dim={dim}")
    if not (noise >= 0 and size > 0):
        raise ValueError(f"noise must not be negative and size positive, got {noise} and {size}")
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=draw, dtype=torch.float64)).Q
    anchors, rest = basis[:, :k].T, basis[:, k:].T
    a = torch.randint(k, (n,), generator=draw)
    b = (a + torch.randint(1, k, (n,), generator=draw)) % k
    m = 0.5 * torch.rand(n, generator=draw, dtype=torch.float64)
    named = torch.zeros(n, k, dtype=torch.float64)
    named[torch.arange(n), a], named[torch.arange(n), b] = 1 - m, m
    topic = torch.where(torch.rand(n, generator=draw, dtype=torch.float64) < m, b, a)
    r = size * torch.rand(n, generator=draw, dtype=torch.float64)
    u = F.normalize(torch.randn(n, dim - k, generator=draw, dtype=torch.float64), dim=1) @ rest
    source = F.normalize(anchors[topic] + r[:, None] * u, dim=1)
    clean = named @ anchors + r[:, None] * u
    question = F.normalize(clean + noise * torch.randn(n, dim, generator=draw, dtype=torch.float64), dim=1)
    return Planted(
        question.float(),
        source.float(),
        topic,
        anchors.float(),
        named.float(),
        (source - anchors[topic]).norm(dim=1).float(),
        -named[torch.arange(n), topic].log().float(),
    )
