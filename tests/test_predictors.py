"""The masked-token predictor: the query decides, blocks are independent, padding takes no part."""

import torch

from jepa_lab.predictors import MaskedTokenPredictor, MLPPredictor


def make(batch=2, k=5, m=3, length=4, dim=8):
    torch.manual_seed(0)
    predictor = MaskedTokenPredictor(dim, width=6, depth=2, heads=2).double()
    context, query = torch.randn(batch, k, dim).double(), torch.randn(batch, k, dim).double()
    asked = torch.randn(batch, m, length, dim).double()
    return predictor, context, torch.ones(batch, k).bool(), query, asked, torch.ones(batch, m, length).bool()


def test_each_block_is_predicted_in_its_own_sequence():
    predictor, h, hv, hq, q, qv = make()
    out = predictor(h, hv, hq, q, qv)
    for m in range(3):
        torch.testing.assert_close(predictor(h, hv, hq, q[:, m : m + 1], qv[:, m : m + 1])[:, 0], out[:, m])
    other = q.clone()
    other[:, 1] += 1  # another question in block 1
    changed = (predictor(h, hv, hq, other, qv) - out).abs().amax((0, 2, 3)) > 1e-9
    assert changed.tolist() == [False, True, False]


def test_the_prediction_follows_the_query_and_the_context():
    predictor, h, hv, hq, q, qv = make()
    out = predictor(h, hv, hq, q, qv)
    same = q.clone()
    same[:, :, 1] = same[:, :, 0]
    out_same = predictor(h, hv, hq, same, qv)
    torch.testing.assert_close(out_same[:, :, 0], out_same[:, :, 1])  # the same question has the same answer
    assert (out[:, :, 0] - out[:, :, 1]).abs().max() > 1e-3
    for changed in (predictor(h + 1, hv, hq, q, qv), predictor(h, hv, hq + 1, q, qv)):
        assert (changed - out).abs().max() > 1e-3


def test_padding_in_context_and_blocks_takes_no_part():
    predictor, h, hv, hq, q, qv = make()
    hv[0, 3:], qv[0, 1, 2:], qv[1, 2] = False, False, False  # the last: an empty block
    out = predictor(h, hv, hq, q, qv)
    h2, hq2, q2 = h.clone(), hq.clone(), q.clone()
    h2[0, 3:], hq2[0, 3:], q2[0, 1, 2:], q2[1, 2] = 1e5, 1e5, 1e5, 1e5
    torch.testing.assert_close(predictor(h2, hv, hq2, q2, qv), out)
    assert (out[~qv] == 0).all()


def test_mlp_predictor_keeps_the_width():
    assert MLPPredictor(8)(torch.randn(2, 3, 8)).shape == (2, 3, 8)
