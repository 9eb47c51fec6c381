"""What is the time of an I-JEPA step spent on? `python -m benchmarks.i_jepa` writes `results/speed_i_jepa.json`.

A whole step with multi-block masks is raced first. Then it is taken apart: each part with its own backward pass, which
is why gradients are handed from one part to the next by hand. Beside the parts stand their usual alternatives: masks
drawn image by image, and a context encoder that is shown all tokens and told by a mask which ones to attend to.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor

from benchmarks import machine
from benchmarks.parts import HAVE_LIGHTLY
from benchmarks.steps import images
from benchmarks.timing import clock_of, digits, race, ratio, summary
from jepa_lab.experiment import git_revision, write_json
from jepa_lab.masking import Mask, MaskConfig, take_visible
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import JEPA, JEPAConfig
from jepa_lab.objectives.masked import draw_mask
from jepa_lab.tokens import Tokens, gather_tokens
from jepa_lab.training import TrainConfig, Trainer

SIDES, PATCH, BATCH = (28, 56), 4, 64  # 7 x 7 and 14 x 14 tokens, the second as many as a ViT sees of 224 pixels
MASK = MaskConfig(kind="multiblock", n_blocks=4)
PARTS = ("masks", "tokens", "context encoder", "predictor", "target encoder", "loss", "optimizer and EMA")


def trainer_of(side: int, batch: int = BATCH) -> Trainer:
    """A trainer of I-JEPA that stays at the start of its schedules however often an epoch is asked for."""
    torch.manual_seed(0)
    pictures = images(4 * batch, side)
    encoder = image_encoder(pictures, EncoderConfig(patch=PATCH))
    config = TrainConfig(epochs=10**6, batch_size=batch, lr=1e-4, threads=0)
    return Trainer(JEPA(encoder, JEPAConfig(mask=MASK), seed=0), {"image": pictures}, config)


def apart(trainer: Trainer, batch: dict[str, Tensor], timed: Callable) -> Tensor:
    """One training step, part by part, each inside `timed(name, call)`; returns the loss.

    The gradients are those of `objective(batch)[0].backward()`: those of the predictor end at a copy of the context
    encoder's outputs, from which its own backward pass goes on.
    """
    objective = trainer.objective
    encoder = objective.encoder
    tokens: Tokens = timed("tokens", lambda: encoder.tokenize(batch))
    mask = timed("masks", lambda: draw_mask(MASK, encoder, tokens, objective.generator)[0])
    h, valid, index = timed("context encoder", lambda: encode(encoder, tokens, mask))
    leaf = h.detach().requires_grad_()
    prediction, asked, slot = timed("predictor", lambda: predict(objective.predictor, tokens, mask, leaf, valid, index))
    everything = timed("target encoder", lambda: objective.targets(batch))

    def compare() -> tuple[Tensor, Tensor]:
        target = gather_tokens(repeat(everything, "b n d -> (b m) n d", m=mask.targets.shape[1]), slot)
        answer = prediction.detach().requires_grad_()
        loss = objective.compare(answer, target, asked)
        return loss.detach(), torch.autograd.grad(loss, answer)[0]

    trainer.optimizer.zero_grad(set_to_none=True)
    loss, gradient = timed("loss", compare)
    timed("predictor", lambda: prediction.backward(gradient))
    # The tokens' own backward pass, one product, is counted here: it shares the graph of the encoder.
    timed("context encoder", lambda: h.backward(leaf.grad))

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trainer._parameters, 1.0)
        trainer.optimizer.step()
        objective.after_step(0.0)

    timed("optimizer and EMA", update)
    return loss


def encode(encoder, tokens: Tokens, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """The context tokens alone."""
    context, valid, index = take_visible(tokens.x, mask.context)
    return encoder.encode(context, valid), valid, index


def predict(predictor, tokens: Tokens, mask: Mask, h: Tensor, valid: Tensor, index: Tensor) -> tuple:
    """Each target block from the context: predictions, which are real, and their slots."""
    m = mask.targets.shape[1]
    flat = rearrange(mask.targets, "b m n -> (b m) n")
    query, asked, slot = take_visible(repeat(tokens.query, "b n d -> (b m) n d", m=m), flat)
    blocks = rearrange(query, "(b m) l d -> b m l d", m=m), rearrange(asked, "(b m) l -> b m l", m=m)
    prediction = predictor(h, valid, gather_tokens(tokens.query, index), *blocks)
    return rearrange(prediction, "b m l d -> (b m) l d"), asked, slot


def parts(trainer: Trainer, rounds: int) -> list[dict]:
    """Median ms of each part, forward and backward together, and its share of their sum."""
    trainer.train_epoch(0)  # makes the optimizer, and warms up
    batch = next(iter(trainer.batches(0)))
    clock, found = clock_of("cpu"), {name: [] for name in PARTS}
    for _ in range(rounds):
        spent = dict.fromkeys(PARTS, 0.0)

        def timed(name: str, call: Callable, spent: dict[str, float] = spent):
            start = clock()
            out = call()
            spent[name] += (clock() - start) * 1e3
            return out

        apart(trainer, batch, timed)
        for name, value in spent.items():
            found[name].append(value)
    middle = {name: sorted(times)[rounds // 2] for name, times in found.items()}
    total = sum(middle.values())
    return [{"part": name, "median_ms": digits(ms), "share": digits(ms / total)} for name, ms in middle.items()]


def alternatives(trainer: Trainer, side: int, seconds: float) -> list[dict]:
    """The two parts that are built differently here than usual, raced against the usual way."""
    encoder, generator = trainer.objective.encoder, torch.Generator().manual_seed(0)
    batch = next(iter(trainer.batches(0)))
    tokens = encoder.tokenize(batch)
    tokens = tokens._replace(x=tokens.x.detach())
    mask = draw_mask(MASK, encoder, tokens, generator)[0]

    def step(keep: Tensor | None) -> None:
        h = encode(encoder, tokens, mask)[0] if keep is None else encoder.encode(tokens.x, keep)
        h.square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    races = {"context encoder": {"all tokens, masked": lambda: step(mask.context), "ours": lambda: step(None)}}
    if HAVE_LIGHTLY:
        from lightly.data.ijepa_collate import IJEPAMaskCollator

        collate = IJEPAMaskCollator(input_size=(side, side), patch_size=PATCH, min_keep=4)
        rows = [torch.zeros(1)] * len(tokens.x)
        races["masks"] = {
            "image by image": lambda: collate(rows),
            "ours": lambda: draw_mask(MASK, encoder, tokens, generator),
        }
    found = []
    for part, calls in races.items():
        spent = race(calls, seconds)
        other = next(iter(calls))
        times = {name: summary(one) for name, one in spent.items()}
        found.append({"part": part, "other": other, **ratio(spent[other], spent["ours"]), "times": times})
    return found


def measure(side: int, seconds: float, batch: int = BATCH) -> dict:
    """A row for one size of picture: images a second, the parts, and the alternatives."""
    trainer = trainer_of(side, batch)
    spent = [t / 4 for t in race({"step": lambda: trainer.train_epoch(0)}, seconds)["step"]]
    whole = summary(spent)
    return {
        "tokens": (side // PATCH) ** 2,
        "batch": batch,
        "weights": sum(p.numel() for p in trainer._parameters),
        **whole,
        "images_per_second": digits(1e3 * batch / whole["median_ms"]),
        "parts": parts(trainer, rounds=20 if seconds >= 1 else 3),
        "alternatives": alternatives(trainer, side, seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.i_jepa", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the file")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each race takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wall, core = time.perf_counter(), time.process_time()
    rows = [measure(side, arguments.seconds) for side in SIDES]
    result = {
        "name": "speed_i_jepa",
        "kind": "speed",
        "git_revision": git_revision(),
        "device": "cpu",
        "machine": machine.describe("cpu"),
        "sizes": rows,
        "core_seconds": round(time.process_time() - core, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }
    for row in rows:
        print(f"{row['tokens']} tokens: {row['images_per_second']:.4g} images/s")
        for part in row["parts"]:
            print(f"  {part['part']:18} {part['median_ms']:8.3g} ms {part['share']:6.1%}")
        for one in row["alternatives"]:
            print(f"  {one['part']}: {one['other']} takes {one['ratio_median']:.3g} times as long")
    print(write_json(arguments.out / "speed_i_jepa.json", result))


if __name__ == "__main__":
    main()
