"""Is the step that is taken apart the step that is trained, and does the stored profile hold together?"""

import copy
import json
from pathlib import Path

import pytest
import torch

from benchmarks import i_jepa
from jepa_lab.objectives.masked import draw_mask

FILE = Path(__file__).resolve().parent.parent / "results" / "speed_i_jepa.json"


def test_the_parts_are_the_step():
    """Loss, gradients, and the weights after the update, of two steps: a part left out would show in one of them."""
    whole, taken = i_jepa.trainer_of(28, 8), i_jepa.trainer_of(28, 8)
    for trainer in (whole, taken):
        trainer.train_epoch(0)
    batch = {"image": torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))}
    taken.objective.load_state_dict(whole.objective.state_dict())
    order = []

    def timed(name, call):
        order.append(name)
        return call()

    for _ in range(2):
        loss, _ = whole.objective(batch)
        whole.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in whole.objective.named_parameters() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(whole._parameters, 1.0)
        whole.optimizer.step()
        whole.objective.after_step(0.0)
        torch.testing.assert_close(i_jepa.apart(taken, batch, timed), loss.detach())
        found = {name: p.grad for name, p in taken.objective.named_parameters() if p.grad is not None}
        assert found.keys() == gradients.keys() and set(order) == set(i_jepa.PARTS)
    for name, value in whole.objective.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(taken.objective.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_all_tokens_under_a_mask_are_the_context_alone():
    """The alternative gives the same outputs at the context: what differs is the time."""
    trainer = i_jepa.trainer_of(28, 4)
    encoder = trainer.objective.encoder
    tokens = encoder.tokenize(next(iter(trainer.batches(0))))
    mask = draw_mask(i_jepa.MASK, encoder, tokens, torch.Generator().manual_seed(0))[0]
    h, valid, _ = i_jepa.encode(encoder, tokens, mask)
    torch.testing.assert_close(encoder.encode(tokens.x, mask.context)[mask.context], h[valid], rtol=1e-4, atol=1e-5)


def test_a_measured_size_names_every_part():
    row = i_jepa.measure(28, 0.01, batch=4)
    assert [part["part"] for part in row["parts"]] == list(i_jepa.PARTS) and row["tokens"] == 49
    assert sum(part["share"] for part in row["parts"]) == pytest.approx(1, abs=0.01)
    assert all(part["median_ms"] > 0 for part in row["parts"])
    assert "context encoder" in {one["part"] for one in row["alternatives"]}


def check(result):
    """Complaints about the stored profile."""
    complaints = [] if result["kind"] == "speed" and "+" not in result["git_revision"] else ["not of a clean commit"]
    for row, side in zip(result["sizes"], i_jepa.SIDES, strict=True):
        if row["tokens"] != (side // i_jepa.PATCH) ** 2 or [p["part"] for p in row["parts"]] != list(i_jepa.PARTS):
            complaints.append(f"{row['tokens']} tokens: other sizes or parts")
        if row["images_per_second"] != pytest.approx(1e3 * row["batch"] / row["median_ms"], rel=1e-2):
            complaints.append("images_per_second is not that of the step")
        total = sum(p["median_ms"] for p in row["parts"])
        if not 0.7 < total / row["median_ms"] < 1.4:
            complaints.append(f"the parts take {total:.3g} ms, the step {row['median_ms']:.3g}")
        if "context encoder" not in {one["part"] for one in row["alternatives"]}:  # the masks' needs lightly
            complaints.append("an alternative is missing")
    return complaints


@pytest.mark.skipif(not FILE.exists(), reason="no results/speed_i_jepa.json: python -m benchmarks.i_jepa makes it")
def test_the_stored_profile_is_whole():
    result = json.loads(FILE.read_text())
    assert not (complaints := check(result)), "\n".join(complaints)
    for spoil in (
        lambda r: r.update(git_revision="0+"),
        lambda r: r["sizes"][0]["parts"].pop(),
        lambda r: r["sizes"][1].update(images_per_second=1.0),
        lambda r: r["sizes"][0]["parts"][2].update(median_ms=1e4),
        lambda r: r["sizes"][1]["alternatives"].pop(0),
    ):
        bad = copy.deepcopy(result)
        spoil(bad)
        assert check(bad)
