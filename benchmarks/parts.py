"""Parts of a training step: masks, the two averages, and what a monitor adds."""

import copy
from importlib.util import find_spec

import torch

from benchmarks.plain_step import PlainJEPA, make_step
from benchmarks.steps import WIDTH, images, trainer_of
from benchmarks.timing import race, ratio, summary
from jepa_lab.masking import multiblock_mask
from jepa_lab.metrics import diagnose
from jepa_lab.monitor import CollapseMonitor
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import JEPA
from jepa_lab.tokens import kept_slots

HAVE_LIGHTLY = find_spec("lightly") is not None


def masks(rows: int, seconds: float, device: str = "cpu") -> dict:
    """Multi-block masks on 14 x 14 tokens, with the settings of I-JEPA, for a batch of `rows` images, as an encoder
    takes them: the slots of the context and of each target block, in rows of one length (lightly cuts to the shortest,
    we pad to the longest)."""
    valid = torch.ones(rows, 196, dtype=torch.bool, device=device)
    generator = torch.Generator().manual_seed(0)

    def ours() -> list:
        mask = multiblock_mask(valid, (14, 14), min_context=4, generator=generator)
        targets = mask.targets.flatten(0, 1)
        return [kept_slots(keep, int(keep.sum(1).max())) for keep in (mask.context, targets)]

    calls = {"ours": ours}
    if HAVE_LIGHTLY:
        from lightly.data.ijepa_collate import IJEPAMaskCollator

        theirs = IJEPAMaskCollator(
            input_size=(14, 14),
            patch_size=1,
            enc_mask_scale=(0.85, 1.0),
            pred_mask_scale=(0.15, 0.2),
            aspect_ratio=(0.75, 1.5),
            npred=4,
            min_keep=4,
        )
        batch = [torch.zeros(1)] * rows
        calls["lightly"] = lambda: theirs(batch)  # on the CPU: it is a collator
    return {"rows": rows, "spent": race(calls, seconds, device=device)}


def optimizer_and_average(seconds: float, device: str = "cpu") -> dict:
    """AdamW and EMA over the weights of the JEPA of the chapters: torch's default and lightly's average, or ours."""
    objective = JEPA(image_encoder(images(64))).to(device)
    objective({"image": images(64).to(device)})[0].backward()
    weights = [p for p in objective.parameters() if p.requires_grad]
    target = copy.deepcopy(objective.encoder).requires_grad_(False)
    default, fused = torch.optim.AdamW(weights), torch.optim.AdamW(weights, fused=True)
    flat = torch.cat([p.detach().flatten() for p in target.parameters()])

    def ours() -> None:
        fused.step()
        objective.after_step(0.5)

    calls = {"ours": ours, "limit": lambda: flat.lerp_(flat, 0.01)}
    if HAVE_LIGHTLY:
        from lightly.models.utils import update_momentum

        def theirs() -> None:
            default.step()
            update_momentum(objective.encoder, target, 0.99)

        calls["lightly"] = theirs
    return {"weights": len(weights), "spent": race(calls, seconds, device=device)}


def plain_step(side: int, seconds: float, batch: int = 64, device: str = "cpu") -> dict:
    """One epoch of eight steps, ours through the trainer and the plain one in its loop; ms are those of a step."""
    pictures = images(8 * batch, side)
    trainer = trainer_of("jepa", {"image": pictures}, batch, device)
    step = make_step(PlainJEPA(pictures).to(device))
    there = pictures.to(device)

    def plain() -> None:
        with torch.device(device):  # its masks as well
            for i in range(8):
                step(there[i * batch : (i + 1) * batch])

    spent = race({"ours": lambda: trainer.train_epoch(0), "plain": plain}, seconds, device=device)
    tokens = (side // 2) ** 2
    return {"tokens": tokens, "batch": batch, "spent": {k: [t / 8 for t in v] for k, v in spent.items()}}


def monitors(seconds: float, device: str = "cpu") -> list[dict]:
    """What looking at the embeddings costs, as a share of a JEPA step at the size of the chapters."""
    trainer = trainer_of("jepa", {"image": images(512)}, 64, device)
    z, many = torch.randn(64, WIDTH, device=device), torch.randn(512, WIDTH, device=device)
    monitor = CollapseMonitor(every=1)
    watched = CollapseMonitor(every=10)

    def readings(m: CollapseMonitor, rows: torch.Tensor) -> None:
        for _ in range(160):  # ten times the readings that wait to be measured together
            m(rows)

    calls = {
        "step": lambda: trainer.train_epoch(0),
        "CollapseMonitor, each step": lambda: readings(monitor, z),
        "CollapseMonitor, each tenth step": lambda: readings(watched, z),
        "diagnose, 64 rows": lambda: diagnose(z),
        "diagnose, 512 rows": lambda: diagnose(many),
    }
    spent = race(calls, seconds, device=device)
    per = {"step": 8, "CollapseMonitor, each step": 160, "CollapseMonitor, each tenth step": 160}
    spent = {name: [t / per.get(name, 1) for t in times] for name, times in spent.items()}
    step = spent.pop("step")
    return [
        {"what": name, **summary(times), "share_of_a_step": ratio(times, step)["ratio_median"]}
        for name, times in spent.items()
    ]
