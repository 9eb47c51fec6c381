"""Does the race of the ways to batch records compare equal work, and do buckets and dropping save any?"""

import pytest
import torch

from benchmarks import records as race
from jepa_lab.data.clinical import PARAMETERS
from jepa_lab.data.clinical_batches import Scale
from jepa_lab.data.clinical_generator import GeneratorConfig, generate
from jepa_lab.masking import Mask, MaskConfig


def stays(n, density):
    records = generate(n, 0, GeneratorConfig(channels=("HR", "MAP", "RespRate", "K"), density=density, present=0.4))
    return Scale.fit(records)(records)


def test_every_way_shows_the_same_stays():
    records = stays(32, 0.3)
    made = race.epochs(records, 8)
    assert set(made) == {"buckets", "shuffled", "longest", "attended", "both"}
    for batches in made.values():
        assert sum(int(batch["valid"].sum()) for batch in batches) == len(records.value)
        values = torch.cat([batch["value"][batch["valid"]] for batch in batches])
        torch.testing.assert_close(values.sort().values, records.value.sort().values)
    slots = {name: sum(batch["valid"].numel() for batch in batches) for name, batches in made.items()}
    assert slots["buckets"] < slots["shuffled"] < slots["longest"] == 32 * int(records.count.max())


def test_the_attended_step_hides_the_values_all_the_same():
    """The values that are hidden reach the loss through the targets alone."""
    model, batch = race.make_model(len(PARAMETERS), 8), race.epochs(stays(16, 0.2), 8)["buckets"][0]

    class Halves(MaskConfig):
        def draw(self, valid, grid=None, generator=None, series=None):
            seen = torch.arange(valid.shape[1]) % 2 == 0
            return Mask(valid & seen, (valid & ~seen)[:, None])

    object.__setattr__(model.config, "mask", Halves())
    targets = model.targets(batch)
    model.targets = lambda b: targets
    hidden = torch.arange(batch["valid"].shape[1]) % 2 == 1
    loss = race.attended(model, batch)
    other = batch | {"value": torch.where(hidden, batch["value"] + 5, batch["value"])}
    torch.testing.assert_close(race.attended(model, other), loss, rtol=0, atol=0)
    seen = batch | {"value": torch.where(hidden, batch["value"], batch["value"] + 5)}
    assert not torch.isclose(race.attended(model, seen), loss)
    model.targets = lambda b: torch.nn.functional.pad(targets, (0, 0, 0, 40 - targets.shape[1]))
    wide = race.attended(model, race.longer(batch, 40))
    torch.testing.assert_close(wide, loss)


@pytest.mark.slow
def test_buckets_and_dropping_save_time():
    found = race.measure(stays(64, 1.0), 16, seconds=2.0, dim=16)
    assert [row["what"] for row in found["ratios"]] == list(race.COMPARED)
    ratios = {row["what"]: row["ratio_median"] for row in found["ratios"]}
    assert ratios["dropped instead of attended"] > 1.05
    assert ratios["buckets instead of the longest of the set"] > 1.1
    assert ratios["all of it"] > 1.3
