"""Networks: padding takes no part, positions are told apart, patches survive the round trip."""

import pytest
import torch

from jepa_lab.nets import (
    MLP,
    EncoderConfig,
    PatchTokenizer,
    Transformer,
    image_encoder,
    masked_mean,
    patchify,
    sincos_1d,
    sincos_2d,
    unpatchify,
)


def test_padding_never_reaches_any_output():
    torch.manual_seed(0)
    net = Transformer(16, 2, 4).double().eval()
    x = torch.randn(3, 6, 16, dtype=torch.float64)
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [True] * 1 + [False] * 5])
    out = net(x, valid)
    other = torch.where(valid[..., None], x, 1e6 * torch.randn_like(x))
    torch.testing.assert_close(net(other, valid), out)
    assert (out[~valid] == 0).all()
    alone = net(x[:1, :4], valid[:1, :4])  # the same row without its padding
    torch.testing.assert_close(alone[0], out[0, :4])


def test_a_row_of_padding_alone_gives_zeros_and_finite_gradients():
    net = Transformer(8, 1, 2)
    x = torch.randn(2, 3, 8, requires_grad=True)
    out = net(x, torch.tensor([[True, True, False], [False, False, False]]))
    assert (out[1] == 0).all()
    out.square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad[1] == 0).all()


def test_transformer_without_positions_is_permutation_equivariant():
    torch.manual_seed(0)
    net, x, valid = Transformer(8, 2, 2).double(), torch.randn(1, 5, 8).double(), torch.ones(1, 5, dtype=torch.bool)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net(x[:, order], valid), net(x, valid)[:, order])


def test_attention_equals_the_explicit_softmax():
    torch.manual_seed(0)
    block = Transformer(8, 1, 2).double().blocks[0].attention
    x = torch.randn(2, 5, 8).double()
    valid = torch.tensor([[True] * 5, [True, True, False, True, False]])
    q, k, v = block.qkv(x).chunk(3, -1)
    heads = []
    for h in range(2):
        s = slice(4 * h, 4 * h + 4)
        score = (q[..., s] @ k[..., s].mT / 2.0).masked_fill(~valid[:, None], -torch.inf)
        heads.append(score.softmax(-1) @ v[..., s])
    torch.testing.assert_close(block(x, valid[:, None, None]), block.out(torch.cat(heads, -1)))


def test_position_codes_are_distinct_and_shift_by_rotation():
    code = sincos_2d((7, 9), 32).double()
    distance = torch.cdist(code, code) + 1e3 * torch.eye(63)
    assert distance.min() > 0.1
    one = sincos_1d(torch.arange(40.0), 16).double()
    products = one @ one.T  # depends on the difference of positions alone
    torch.testing.assert_close(products[3, 10], products[20, 27], rtol=1e-4, atol=1e-4)
    assert products[0, 0] > products[0, 1] > products[0, 3]
    with pytest.raises(ValueError, match="even"):
        sincos_1d(torch.zeros(2), 7)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d((2, 2), 6)


def test_patches_are_cut_in_raster_order_and_put_back():
    image = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    torch.testing.assert_close(patches[0, 1].view(2, 2, 3), image[0, :, :2, 2:4].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 2, (2, 3)), image)


def test_tokenizer_standardises_and_keeps_the_raw_pixels():
    image = 0.3 + 0.1 * torch.rand(50, 1, 8, 8)
    encoder = image_encoder(image, EncoderConfig(patch=4, dim=16, depth=1))
    tokens = encoder.tokenize({"image": image})
    assert tokens.x.shape == (50, 4, 16) and tokens.raw.shape == (50, 4, 16) and encoder.grid == (2, 2)
    assert torch.equal(tokens.raw, patchify(image, 4))
    content = encoder.tokenize({"image": image}).x - tokens.query
    shifted = image_encoder(5 * image - 2, EncoderConfig(patch=4, dim=16, depth=1))
    shifted.load_state_dict(
        {**encoder.state_dict(), "tokenizer.mean": shifted.tokenizer.mean, "tokenizer.std": shifted.tokenizer.std}
    )
    again = shifted.tokenize({"image": 5 * image - 2})
    torch.testing.assert_close(again.x - again.query, content, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encoder({"image": image}), encoder.encode(tokens.x, tokens.valid))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="patch must divide the image size 8 x 8, got patch=3"):
        PatchTokenizer((8, 8), 1, 3, 8)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), got \(2, 3, 8, 8\)"):
        PatchTokenizer((8, 8), 1, 2, 8)({"image": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="multiple of heads"):
        Transformer(10, 1, 4)


def test_mlp_depth_and_masked_mean():
    assert [type(m).__name__ for m in MLP(3, 5, 2, depth=2)].count("Linear") == 3
    h = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [2.0], [3.0]]])
    mean = masked_mean(h, torch.tensor([[True, True, False], [False] * 3]))
    assert mean[0].item() == 2.0 and mean[1].isnan().all()
