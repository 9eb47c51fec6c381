"""What test_distributed.py runs in one process and in two: `python -m tests.distributed_cases RANK FOLDER`.

A case is an objective and three global batches. One process trains on whole batches; rank r of N on the rows r::N, its
gradients averaged by DistributedDataParallel.
"""

import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa_lab import distributed, losses
from jepa_lab.data.augment import Augmentation
from jepa_lab.masking import MaskConfig
from jepa_lab.nets import (
    EncoderConfig,
    SeriesEncoderConfig,
    TokenEncoder,
    Tokens,
    Transformer,
    image_encoder,
    series_encoder,
)
from jepa_lab.objectives import OBJECTIVES, MomentumConfig, TwoView, build_objective
from jepa_lab.objectives.retrieval import PhaseConfig, Retrieval, RetrievalConfig, RetrievalLossConfig
from jepa_lab.objectives.routed import RoutedJasper, RoutedJasperConfig, RoutingLossConfig
from jepa_lab.objectives.steering import Jasper, JasperConfig, TargetConfig
from jepa_lab.polar.features import FeatureConfig
from jepa_lab.polar.jepa import PolarJEPAConfig
from jepa_lab.polar.model import PolarV1, PolarV1Config
from jepa_lab.predictors import DecomposedConfig, SteeringPredictorConfig
from jepa_lab.routing import RouterConfig
from jepa_lab.text_nets import Projection, RetrievalPredictorConfig

WORLD = 2
STEPS = 3
TARGETS = ("ema", "stop_gradient", "none")
REGULARISERS = ("none", "vicreg", "sigreg", "isotropy")
MOMENTUM = MomentumConfig(start=0.8, end=0.9)  # the target encoder must move visibly within three steps
CHANGES = Augmentation(crop=(0.5, 1.0), rotation=0.3, flip=0.5, brightness=0.2, contrast=0.2, noise=0.1)


class SequenceTokenizer(nn.Module):
    """Tokens with padding: a linear map of given vectors plus a learned position."""

    def __init__(self, dim: int):
        super().__init__()
        self.raw_dim = 3
        self.embed = nn.Linear(3, dim)
        self.position = nn.Embedding(16, dim)

    def forward(self, batch: dict[str, Tensor]) -> Tokens:
        query = self.position.weight[: batch["x"].shape[1]].expand(len(batch["x"]), -1, -1)
        return Tokens(self.embed(batch["x"]) + query, batch["valid"], query, batch["x"])


def images(rows: int) -> list[dict[str, Tensor]]:
    """Three batches; as the two ranks see them, `rows` even gives them equally many rows."""
    generator = torch.Generator().manual_seed(rows)
    return [
        {
            "image": torch.rand(rows, 1, 12, 12, generator=generator, dtype=torch.float64),
            "label": torch.randint(10, (rows,), generator=generator),
        }
        for _ in range(STEPS)
    ]


def sequences() -> list[dict[str, Tensor]]:
    """Nine rows of 10, 1, 6, ... real tokens. Rank 0 loses one row, which has none; two rows of rank 1, with one token
    each, cannot be masked."""
    generator = torch.Generator().manual_seed(0)
    count = torch.tensor([10, 1, 6, 9, 0, 4, 8, 1, 5])
    batches = images(len(count))
    for batch in batches:
        batch["x"] = torch.randn(len(count), 10, 3, generator=generator, dtype=torch.float64)
        batch["valid"] = torch.arange(10) < count[:, None]
    return batches


def pairs(rows: int) -> list[dict[str, Tensor]]:
    """Questions, sources, steering and negatives in 6 dimensions, with 3 topics; two rows share a source."""
    generator = torch.Generator().manual_seed(rows)

    def vectors(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, 6, generator=generator, dtype=torch.float64), dim=-1)

    return [
        {
            "question": vectors(rows),
            "source": vectors(rows),
            "steering": vectors(rows),
            "negatives": vectors(rows, 2),
            "topic": torch.randint(3, (rows,), generator=generator),
            "source_id": torch.tensor([1, 1, *range(2, rows)]),
            "negative_id": torch.randint(20, (rows, 2), generator=generator),
            "steering_variant": torch.randint(4, (rows,), generator=generator),
        }
        for _ in range(STEPS)
    ]


def series() -> list[dict[str, Tensor]]:
    """The sequences as observations of four channels over two days."""
    generator = torch.Generator().manual_seed(0)
    batches = sequences()
    for batch in batches:
        batch["value"] = batch["x"][..., 0]
        batch["time"] = 48 * torch.rand(batch["valid"].shape, generator=generator, dtype=torch.float64)
        batch["feature"] = torch.randint(4, batch["valid"].shape, generator=generator)
    return batches


def movies(rows: int) -> list[dict[str, Tensor]]:
    """Twelve frames of noise, a gaze with a blink in the first row, counts of three neurons."""
    generator = torch.Generator().manual_seed(rows)

    def noise(*shape: int) -> Tensor:
        return torch.randn(rows, 12, *shape, generator=generator, dtype=torch.float64)

    batches = [
        {
            "movie": noise(12, 12),
            "gaze": 0.02 * noise(2).cumsum(1),
            "counts": noise(3).abs().round(),
            "scored": torch.arange(12).expand(rows, 12) >= 4,
        }
        for _ in range(STEPS)
    ]
    batches[1]["gaze"][0, 3] = torch.nan
    return batches


BATCHES = {"sequences": lambda rows: sequences(), "series": lambda rows: series(), "images": images}


def encoder(kind: str) -> TokenEncoder:
    torch.manual_seed(0)
    if kind == "series":
        return series_encoder(4, SeriesEncoderConfig(dim=8, depth=1, heads=2))
    if kind == "sequences":
        return TokenEncoder(SequenceTokenizer(8), Transformer(8, 1, 2), 8)
    return image_encoder(images(64)[0]["image"].float(), EncoderConfig(patch=2, dim=8, depth=1, heads=2))


def cases() -> dict[str, Callable[[], tuple[nn.Module, list[dict[str, Tensor]]]]]:
    """Name -> a function that builds the objective, in float64, and its three global batches."""
    found = {}

    def add(name: str, kind: str, rows: int = 8, label: str = "", **settings) -> None:
        def build():
            objective = build_objective(name, encoder(kind), seed=1, **settings).double()
            return objective, BATCHES[kind](rows)

        words = [kind if kind != "images" else f"{rows} images", label]
        words += [str(value) for value in settings.values() if isinstance(value, str | float)]
        found[" ".join([name, *filter(None, words)])] = build

    for target in TARGETS:
        for regulariser in REGULARISERS:
            # 20 rows of the regulariser are fewer than there are: which ones must not depend on the processes.
            regularised = {"target": target, "regulariser": regulariser, "regulariser_rows": 20, "momentum": MOMENTUM}
            add("jepa", "images", **regularised)
            add("jepa", "sequences", target_norm="batch", **regularised)
    blocks = MaskConfig("multiblock", n_blocks=2, min_context=2)
    for loss in ("smooth_l1", "mse", "cosine"):
        add("jepa", "images", 7, "multiblock", mask=blocks, loss=loss, momentum=MOMENTUM)
    add("h_jepa", "images", 7, level_pools=(1, 2, 3), level_layers=(0, 0, 0), momentum=MOMENTUM)
    for rows in (8, 7):
        two_views = {"augmentation": CHANGES, "momentum": MOMENTUM}
        pools = {"level_pools": (1, 2, 3), "level_layers": (0, 0, 0)}
        add("c_jepa", "images", rows, contrastive_weight=0.5, **pools, **two_views)
        add("c_jepa", "images", rows, "target", contrastive_on_context=False, **pools, **two_views)
        add("jepa", "images", rows, "NT-Xent", use_contrastive=True, target="none", **two_views)
        add("c_jepa_vicreg", "images", rows, head_norm="batch", vicreg_weight=0.5, **two_views)
    add("mae", "images", 7, "multiblock", mask=blocks, target_norm="layer")
    add("mae", "sequences")
    mix = MaskConfig("mix", 0.5)
    add("mae", "series", mask=mix)
    add("jepa", "series", mask=mix, momentum=MOMENTUM)
    add("contrastive", "series", mask=mix, views="complementary")
    for name in sorted(name for name, cls in OBJECTIVES.items() if issubclass(cls, TwoView)):
        momentum = {"momentum": MOMENTUM} if name == "byol" else {}
        add(name, "images", augmentation=CHANGES, head_norm="batch", label="augmented", **momentum)
        add(name, "images", 7, augmentation=CHANGES, label="augmented", **momentum)
        add(name, "sequences", views="mask", head_norm="batch", **momentum)
        add(name, "sequences", views="complementary", head_norm="layer", **momentum)
        add(name, "images", 7, views="mask", mask=MaskConfig("block", ratio=0.5), projection_dim=0, **momentum)
    add("supervised", "images")
    add("supervised", "images", 7)
    add("supervised", "sequences")

    def add_polar(label: str, rows: int, **settings) -> None:
        def build():
            torch.manual_seed(0)
            jepa = PolarJEPAConfig(hidden=8, dim=6, regulariser="vicreg", regulariser_rows=20, momentum=0.8)
            config = PolarV1Config(features=FeatureConfig(levels=2, pairs=2), jepa=jepa, **settings)
            return PolarV1(config, units=3, image_size=12, seed=1).double(), movies(rows)

        found[f"polar {label} {rows} movies"] = build

    add_polar("static", 5, summary="static")
    add_polar("full", 6, dynamics="behavior", use_jepa=True)

    def add_jasper(target: str, rows: int) -> None:
        def build():
            torch.manual_seed(0)
            model = SteeringPredictorConfig(hidden_dim=8, dropout=0.0)
            ema = TargetConfig(target, start=0.8, end=0.9, hidden_dim=8)
            centroids = F.normalize(torch.randn(3, 6), dim=1)
            return Jasper(centroids, JasperConfig(model, ema), seed=1).double(), pairs(rows)

        found[f"jasper {rows} pairs {target}"] = build

    for target, rows in zip(("raw", *TARGETS), (8, 7, 8, 7), strict=True):
        add_jasper(target, rows)

    def add_routed(target: str, rows: int, sampling: str, **settings) -> None:
        def build():
            torch.manual_seed(0)
            config = RoutedJasperConfig(
                DecomposedConfig(hidden_dim=8, dropout=0.0),
                TargetConfig(target, start=0.8, end=0.9, hidden_dim=8),
                router=RouterConfig(hidden_dim=8, dropout=0.0, sampling=sampling),
                # At these settings every routing loss is at work from the first step.
                routing=RoutingLossConfig(residual_margin=0.0, entropy_until=0.1, disentanglement=0.5),
                **settings,
            )
            centroids = F.normalize(torch.randn(3, 6), dim=1)
            return RoutedJasper(centroids, config, seed=1).double(), pairs(rows)

        found[f"jasper_routed {rows} pairs {target} {sampling}"] = build

    def add_retrieval(rows: int, architecture: str, **loss) -> None:
        def build():
            torch.manual_seed(0)
            # Frozen in the first of the three steps, isotropic in the last.
            weights = RetrievalLossConfig(1.0, 1.0, 1.0, 0.5, n_slices=16, **loss)
            predictor = RetrievalPredictorConfig("residual", dropout=0.0)
            phases = PhaseConfig(frozen_until=0.3, isotropy_from=0.5)
            config = RetrievalConfig(architecture, predictor=predictor, loss=weights, phases=phases)
            return Retrieval(Projection(6, 8), config, seed=1).double(), pairs(rows)

        found[" ".join(["retrieval", str(rows), "pairs", architecture, *map(str, loss.values())])] = build

    add_retrieval(8, "predictor", isotropy="sigreg")
    add_retrieval(7, "asymmetric", isotropy="vicreg", stop_gradient=False)
    add_retrieval(7, "bidirectional", contrast="attraction")
    add_routed("raw", 8, "gumbel")
    add_routed("ema", 7, "gumbel", refreshes=STEPS)
    add_routed("none", 7, "straight_through", router_first=0.5)
    return found


def train(objective: nn.Module, batches: list[dict[str, Tensor]], parallel: bool = False) -> dict[str, Tensor]:
    """Three steps of SGD: every loss, metric and gradient on the way, and the state at the end, under one name each."""
    # Buffers copied from rank 0 at every step would hide that the ranks have different ones.
    options = {"broadcast_buffers": False, "find_unused_parameters": objective.some_without_gradient}
    model = DistributedDataParallel(objective, **options) if parallel else objective
    optimizer = torch.optim.SGD((p for p in objective.parameters() if p.requires_grad), lr=0.02)
    seen = {}
    for step, batch in enumerate(batches):
        progress = step / len(batches)
        objective.before_step(progress)
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        seen[f"step {step} loss"] = loss.detach()
        seen |= {f"step {step} metric {name}": value for name, value in metrics.items()}
        seen |= {
            f"step {step} gradient {n}": p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None
        }
        optimizer.step()
        objective.after_step(progress)
    seen |= {f"state {n}": t.clone() for n, t in objective.state_dict().items() if isinstance(t, Tensor)}
    return seen | {"generator": objective.generator.get_state()}


def parts() -> dict[str, Tensor]:
    """`gather`, `own`, `global_mean` and `BatchNorm` on ranks with different numbers of rows, one of them without any,
    and what one rank does while the other does not.

    Each rank has a loss of its own, weighted with rank + 1: only an exchange that sums the gradients of all losses
    gives the right one.
    """
    rank, seen = distributed.rank(), {}
    weight = 1.0 + rank
    for n in ((4, 2), (0, 3)):
        z = torch.arange(2 * n[rank], dtype=torch.float64).view(-1, 2) + 100 * rank
        z.requires_grad_()
        whole = distributed.gather(z)
        (weight * (whole * torch.arange(whole.numel()).view_as(whole)).sum()).backward()
        seen |= {f"gather {n}": whole.detach(), f"gather {n} gradient": z.grad}
        seen[f"own {n}"] = distributed.own(whole.detach(), len(z))
        mean = z.detach().mean().requires_grad_()
        total = distributed.global_mean(mean, z.numel())
        (weight * total).backward()
        seen |= {f"mean {n}": total.detach(), f"mean {n} gradient": mean.grad}
    norm = distributed.BatchNorm(3).double()
    x = rows(7)[rank::WORLD].clone().requires_grad_()
    y = norm(x)
    (y * rows(7).cos()[rank::WORLD]).sum().backward()
    seen |= {"norm": y.detach(), "norm gradient": x.grad, "norm weight gradient": norm.weight.grad}
    seen |= {f"norm {name}": value for name, value in norm.state_dict().items()}
    for name, loss in fused().items():
        views = [view[rank::WORLD].clone().requires_grad_() for view in (rows(7), rows(7).cos())]
        value = loss(*(distributed.gather(view) for view in views))
        value.backward()
        seen |= {f"fused {name}": value.detach(), f"fused {name} gradient": torch.stack([v.grad for v in views])}
    try:
        distributed.gather(torch.zeros(2, 3 + rank))
    except ValueError as error:
        seen["refused"] = torch.tensor(list(str(error).encode()))
    if rank == 0:
        with distributed.alone():
            seen["alone"] = distributed.gather(rows(3))
    return seen


def fused() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The fused losses of two views, which an objective takes only for batches larger than these tests have."""
    how = {"implementation": "fused"}
    return {
        "nt_xent": lambda a, b: losses.nt_xent(a, b, **how)[0],
        "info_nce": lambda a, b: losses.info_nce(a, b, **how)[0],
        "vicreg": lambda a, b: losses.vicreg(a, b, **how)[0],
        "lejepa": lambda a, b: losses.lejepa(
            torch.stack([a, b]), n_slices=5, generator=torch.Generator().manual_seed(0), **how
        )[0],
    }


def rows(n: int) -> Tensor:
    return torch.sin(torch.arange(3 * n, dtype=torch.float64) ** 2).view(n, 3) * 2 + 1


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is not in older torch
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=120),  # a rank that waits for an exchange the other never makes must fail, not hang
    )
    seen = {"parts": parts()}
    for name, build in cases().items():
        objective, batches = build()
        mine = [{key: value[rank::WORLD] for key, value in batch.items()} for batch in batches]
        seen[name] = train(objective, mine, parallel=True)
    torch.save(seen, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
