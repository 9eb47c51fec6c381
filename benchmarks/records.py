"""`python -m benchmarks.records`: what buckets of like length, and dropping the hidden tokens, save in a JEPA step.

Prints, and with `--out FOLDER` writes `speed_records.json`. Records are full: where all are cut to one length, buckets
have nothing to save.

The same stays go through the same model in five ways, in turns and in one process:

    buckets         batches of records of like length, padded to the longest of the batch; hidden tokens dropped
    shuffled        batches as they come, padded to the longest of the batch
    longest         batches as they come, padded to the longest record of the set
    attended        buckets, but hidden tokens stay in the context encoder, without their values
    both            padded to the longest record of the set, and attended
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.timing import digits, race, ratio, summary
from jepa_lab.data.clinical import Records, physionet2012
from jepa_lab.data.clinical_batches import BatchConfig, RecordBatches, Scale
from jepa_lab.data.clinical_generator import generate
from jepa_lab.experiment import git_revision, write_json
from jepa_lab.losses import prediction_loss
from jepa_lab.masking import MaskConfig, take_visible
from jepa_lab.nets import SeriesEncoderConfig, series_encoder
from jepa_lab.objectives import JEPA, JEPAConfig, PredictorConfig
from jepa_lab.objectives.masked import Answers, draw_mask
from jepa_lab.tokens import gather_tokens
from jepa_lab.training import Batch

COMPARED = {
    "buckets instead of shuffled": ("shuffled", "buckets"),
    "buckets instead of the longest of the set": ("longest", "buckets"),
    "dropped instead of attended": ("attended", "buckets"),
    "all of it": ("both", "buckets"),
}


def make_model(n_features: int, dim: int = 64) -> JEPA:
    torch.manual_seed(0)
    encoder = series_encoder(n_features, SeriesEncoderConfig(dim=dim))
    predictor = PredictorConfig(width=dim // 2, depth=1)
    return JEPA(encoder, JEPAConfig(mask=MaskConfig("random", 0.5), predictor=predictor))


def longer(batch: Batch, n: int) -> Batch:
    """The same batch, padded to n slots."""
    by = n - batch["valid"].shape[1]
    return {key: F.pad(value, (0, by)) if value.ndim == 2 else value for key, value in batch.items()}


def attended(model: JEPA, batch: Batch) -> Tensor:
    """The loss of a context encoder that carries hidden tokens along, their values taken out."""
    encoder, predictor = model.encoder, model.predictor
    tokens = encoder.tokenize(batch)
    mask, _ = draw_mask(model.config.mask, encoder, tokens, model.generator)
    h = encoder.encode(torch.where(mask.context[..., None], tokens.x, tokens.query), tokens.valid)
    context, context_valid, index = take_visible(h, mask.context)
    query, asked, slot = take_visible(tokens.query, mask.targets[:, 0] & context_valid.any(1)[:, None])
    prediction = predictor(
        context, context_valid, gather_tokens(tokens.query, index), query[:, None], asked[:, None]
    ).squeeze(1)
    told = Answers(prediction, asked, slot, context, context_valid)
    return prediction_loss(told.prediction, gather_tokens(model.targets(batch), told.slot), told.asked)


def epochs(records: Records, batch_size: int) -> dict[str, list[Batch]]:
    """The same stays in batches of each kind."""
    n = len(records) // batch_size
    bucketed = list(RecordBatches(records, batch_size, BatchConfig(0, pool=n))(0))
    shuffled = list(RecordBatches(records, batch_size, BatchConfig(0, pool=1))(0))
    longest = int(records.count.max())
    padded = [longer(batch, longest) for batch in shuffled]
    return {
        "buckets": bucketed, "shuffled": shuffled, "longest": padded, "attended": bucketed, "both": padded,
    }  # fmt: skip


def measure(records: Records, batch_size: int = 16, seconds: float = 60.0, dim: int = 64) -> dict:
    """Milliseconds a stay and observations a second of each way, and the ratios of `COMPARED`."""
    model = make_model(len(records.features), dim).train()
    optimizer = torch.optim.AdamW(model.param_groups(1e-4), fused=True)
    stays = len(records) // batch_size * batch_size

    def way(name: str, batches: list[Batch]) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                loss = attended(model, batch) if name in ("attended", "both") else model(batch)[0]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                model.after_step(0.0)

        return run

    made = epochs(records, batch_size)
    spent = race({name: way(name, batches) for name, batches in made.items()}, seconds)
    rows = []
    for name, times in spent.items():
        real = sum(int(batch["valid"].sum()) for batch in made[name])
        slots = sum(batch["valid"].numel() for batch in made[name])
        row = {"way": name, **summary([t / stays for t in times]), "padding": digits(1 - real / slots)}
        rows.append(row | {"observations_per_second": digits(1e3 * real / min(times))})
    ratios = [{"what": what, **ratio(spent[slow], spent[fast])} for what, (slow, fast) in COMPARED.items()]
    return {"batch": batch_size, "stays": stays, "longest": int(records.count.max()), "ways": rows, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.records", description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["generator", "physionet2012"], default="generator")
    parser.add_argument("--stays", type=int, default=128, help="how many of the stays, drawn at random")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long the race takes")
    parser.add_argument("--out", type=Path, default=None, help="folder of the file; none is written without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = physionet2012() if arguments.data == "physionet2012" else generate(4000)
    longest = int(records.count.argmax())  # the record that "longest of the set" means is one of those drawn
    drawn = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([drawn.new_tensor([longest]), drawn[drawn != longest]])[: arguments.stays]
    records = Scale.fit(records)(records)
    result = {"name": "speed_records", "kind": "speed", "git_revision": git_revision(), "data": arguments.data}
    result |= {"machine": machine.describe("cpu")} | measure(records.take(drawn), arguments.batch, arguments.seconds)
    for row in result["ways"]:
        print("{way:10} {median_ms:8.3g} ms a stay, {padding:5.0%} padding".format(**row))
    for row in result["ratios"]:
        print("{what:44} {ratio_median:6.3g} x ({ratio_q1:.3g}..{ratio_q3:.3g})".format(**row))
    if arguments.out:
        print(write_json(arguments.out / "speed_records.json", result))


if __name__ == "__main__":
    main()
