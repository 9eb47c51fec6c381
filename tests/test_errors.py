"""Bad input as a user meets it: in a plain interpreter, where no type checker stands in front of our own messages."""

import json
import subprocess
import sys

import pytest

CASES = {
    "mask ratio": ("masking.random_mask(torch.ones(2, 4).bool(), 1.0)", "must lie in (0, 1), got 1.0"),
    "mask kind": (
        "masking.MaskConfig(kind='checkers')",
        "random, block or multiblock, or for series time, channel or mix, got 'checkers'",
    ),
    "temperature": ("losses.nt_xent(torch.ones(4, 2), torch.ones(4, 2), 0.0)", "temperature must be a positive number"),
    "one-row batch": ("losses.nt_xent(torch.ones(1, 2), torch.ones(1, 2))", "at least 2 rows"),
    "nt_xent shapes": ("losses.nt_xent(torch.ones(4, 2), torch.ones(3, 2))", "(4, 2) and (3, 2)"),
    "nt_xent implementation": (
        "losses.nt_xent(torch.ones(4, 2), torch.ones(4, 2), implementation='fast')",
        "implementation must be 'auto', 'dense' or 'fused', got 'fast'; leave it out for 'auto'",
    ),
    "info_nce implementation": (
        "losses.info_nce(torch.ones(4, 2), torch.ones(4, 2), implementation='fast')",
        "implementation must be 'auto', 'dense' or 'fused', got 'fast'",
    ),
    "vicreg implementation": (
        "losses.vicreg(torch.ones(4, 2), torch.ones(4, 2), implementation='fast')",
        "implementation must be 'auto', 'dense' or 'fused', got 'fast'",
    ),
    "sigreg implementation": (
        "losses.sigreg(torch.ones(4, 2), implementation='fast')",
        "implementation must be 'auto', 'dense' or 'fused', got 'fast'",
    ),
    "prediction shapes": ("losses.prediction_loss(torch.ones(2, 3), torch.ones(3, 3))", "(2, 3) and (3, 3)"),
    "prediction kind": ("losses.prediction_loss(torch.ones(2, 3), torch.ones(2, 3), kind='l7')", "got 'l7'"),
    "target norm": ("losses.normalize_targets(torch.ones(2, 3), 'group')", "got 'group'"),
    "no valid token": (
        "masking.take_visible(torch.ones(2, 3, 1), torch.zeros(2, 3).bool())",
        "no row keeps any token",
    ),
    "alignment shapes": ("metrics.alignment(torch.ones(3, 2), torch.ones(4, 2))", "(3, 2) and (4, 2)"),
    "metrics shape": ("metrics.rankme(torch.ones(3))", "got shape (3,)"),
    "norm of an MLP": ("nets.MLP(2, 2, 2, norm='group')", "got 'group'"),
    "jepa target": ("objectives.JEPA(encoder, objectives.JEPAConfig(target='teacher'))", "got 'teacher'"),
    "views": ("objectives.Contrastive(encoder, objectives.ContrastiveConfig(views='two'))", "got 'two'"),
    "complementary kind": (
        "objectives.Contrastive(encoder, objectives.ContrastiveConfig(views='complementary', "
        "mask=masking.MaskConfig('block')))",
        "mask.kind='block'",
    ),
}
SCRIPT = """
import json, sys, torch
from jepa_lab import losses, masking, metrics, nets, objectives
encoder = nets.image_encoder(torch.rand(4, 1, 8, 8))
said = {}
for name, code in json.load(sys.stdin).items():
    try:
        eval(code)
        said[name] = "no error"
    except (ValueError, TypeError) as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@pytest.mark.slow
def test_messages_name_what_is_wrong():
    cases = json.dumps({name: code for name, (code, _) in CASES.items()})
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=cases, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    wrong = {name: said[name] for name, (_, message) in CASES.items() if message not in said[name]}
    assert not wrong
