# %% [markdown]
# # Masks
#
# **Claim.** A mask is the question a JEPA is asked. How much it hides, and in which shape, decides what the network can
# learn. And what is hidden is best *dropped*: that cannot leak, and it is several times faster than covering it up.

# %% [markdown]
# :::{admonition} At a glance
# :class: tip
# - **Goals**: cut an image into tokens; draw random, block and multi-block masks without a loop; check a sampler against
#   its closed form; prove that hidden tokens do not leak; read a sweep over mask ratios.
# - **Prerequisites**: [JEPA in a minute](01_jepa_in_a_minute). Terms are in the [glossary](../book/glossary.md), letters
#   in the [notation](../book/notation.md).
# - **Cost**: less than a minute of CPU time on one thread, under 1 GB of memory; the last cell prints what it measured.
# - **Seeds**: every cell has its own fixed seed. The sweep holds three seeds per setting, and one of its runs is repeated live.
# :::

# %%
import torch

from jepa_lab import plots
from jepa_lab.training import seed_all

plots.use_style()
torch.set_num_threads(1)
seed_all(0)

# %% [markdown]
# ## The data
#
# Two sets, both without a download. *Sprites* are coloured shapes of 32 x 32 pixels, large enough for every kind of mask.
# *Digits* are the 8 x 8 pixels of chapter 01 {cite}`alpaydin1998digits`, small enough to train on in half a minute. We look
# at masks on the first and at their effect on the second.

# %% mystnb={"image": {"alt": "Eight sprites: a blue circle, crosses in several colours, a green square, some of them on striped backgrounds."}}
from jepa_lab.data.images import digits, sprites


def seeded(seed):
    return torch.Generator().manual_seed(seed)


pictures = sprites(n_train=64, n_validation=1, n_test=1)["train"]["image"]
data = digits()
print("sprites", tuple(pictures.shape), "  digits", tuple(data["train"]["image"].shape))
plots.image_grid(pictures[:8])

# %% [markdown]
# ## Tokens
#
# A transformer reads a list of vectors, not a picture. So the picture is cut into a grid of small squares, the **patches**,
# and each becomes one **token** {cite}`dosovitskiy2021vit`. The patch size is a choice. Patches of 4 pixels turn a
# sprite into an 8 x 8 grid, patches of 2 pixels into 16 x 16.

# %% mystnb={"image": {"alt": "One sprite four times: whole, cut by white lines into 8 by 8 patches, cut into 16 by 16 patches, and with its 8 by 8 patches shuffled so that the shape is lost."}}
from jepa_lab.nets import patchify, unpatchify


def cut(image, patch, zoom=6):
    """White lines between the patches of an enlarged picture."""
    large = image.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    large[..., :: patch * zoom, :] = large[..., :: patch * zoom] = 1.0
    return large


image = pictures[1:2]
order = torch.randperm(64, generator=seeded(0))
shuffled = unpatchify(patchify(image, 4)[:, order], 4, (8, 8))
views = [cut(image, 32), cut(image, 4), cut(image, 2), cut(shuffled, 4)]
plots.image_grid(
    torch.cat(views),
    ["image", "8 x 8 tokens", "16 x 16 tokens", "what order?"],
    columns=4,
)

# %% [markdown]
# The last panel is what a transformer would see of bare patches: it has no sense of order. That is why each token gets
# a **position code**, a fixed vector that says where it stands. The code alone, without content, is the **query**: what
# the predictor is told about a hidden token.
#
# By hand, on a picture of 4 x 4 numbers. Patches run in raster order, row by row, and so do the pixels inside each. Nothing
# is lost: put back together, the patches are the image. The package's tokenizer does three things more. It standardises
# the pixels, maps each patch linearly to width $D$, and adds the position code.

# %%
from jepa_lab.nets import EncoderConfig, image_encoder

tiny = torch.arange(16.0).view(1, 1, 4, 4)
print(
    tiny[0, 0].int(),
    "\n\nfour tokens of four pixels:\n",
    patchify(tiny, 2)[0].int(),
    "\n",
)
assert torch.equal(unpatchify(patchify(tiny, 2), 2, (2, 2)), tiny)
assert torch.equal(unpatchify(patchify(pictures, 4), 4, (8, 8)), pictures)

encoder = image_encoder(pictures, EncoderConfig(patch=4))
tokens = encoder.tokenize({"image": pictures})
{
    name: tuple(value.shape)
    for name, value in tokens._asdict().items()
    if value is not None
}

# %% [markdown]
# `x` are the tokens, `valid` says which are real (pictures have no padding, but lists of measurements will), `query`
# holds the position codes, `raw` the pixels. A fifth field, `series`, is `None` for pictures: it is for measurements.
#
# ## Three kinds of masks
#
# A **mask** says which tokens are **context**, those the context encoder sees, and which are **targets**, those to be
# predicted. Padding is neither.
#
# ### Random
#
# Give every token a random number and hide those with the smallest. With $v$ real tokens in a row and mask ratio $r$,
#
# ```{math}
# :label: eq-random-mask
# \mathcal{T} = \{\, n : \operatorname{rank}(u_n) < \operatorname{round}(r v) \,\}, \qquad u_n \sim \mathrm{Uniform}(0, 1),
# ```
#
# and the other real tokens are the context $\mathcal{C}$. Most small letters of the mask formulas are local to this chapter: $v$, $r$
# and $u_n$ here, $s$ and $L$ for a block, $a$, $\rho$ and the size $h \times w$ for a rectangle. Elsewhere in the book $h$ is the
# output of an encoder.
#
# The rank makes the *number* of hidden tokens exact. A coin per token would make it random. Here is one row of
# six tokens and two slots of padding. Padding gets a number above all others, so it ranks last:

# %%
valid = torch.tensor([[True, True, True, False, True, True, True, False]])
u = torch.tensor([[0.62, 0.10, 0.85, 0.33, 0.47, 0.91, 0.05, 0.20]])
rank = u.masked_fill(~valid, 2.0).argsort(dim=1).argsort(dim=1)
hidden = (rank < round(0.5 * 6)) & valid
for name, row in {"token?": valid, "u": u, "rank": rank, "hidden": hidden}.items():
    print(
        f"{name:7}",
        "  ".join(
            f"{value:4}" if name != "u" else f"{value:.2f}" for value in row[0].tolist()
        ),
    )

# %% [markdown]
# The double `argsort` is the whole trick. The first gives the order (which token comes $k$-th), the second inverts it (the
# place of token $n$). Both work on all rows of a batch at once, also when rows have different numbers of tokens.

# %%
from jepa_lab.masking import random_mask


def random_by_hand(valid, ratio, generator):
    u = torch.rand(valid.shape, generator=generator).masked_fill(~valid, 2.0)
    rank = u.argsort(dim=1).argsort(dim=1)
    hidden = (rank < (valid.sum(1, keepdim=True) * ratio).round()) & valid
    return valid & ~hidden, hidden


ragged = (
    torch.rand(256, 20, generator=seeded(1)) < 0.8
)  # rows with different numbers of tokens
context, hidden = random_by_hand(ragged, 0.6, seeded(2))
package = random_mask(ragged, 0.6, seeded(2))
torch.testing.assert_close((context, hidden[:, None]), tuple(package))
print("this is exactly jepa_lab.masking.random_mask")

# %% [markdown]
# The package adds one guard: a row with two or more tokens always keeps at least one visible and one hidden.
#
# ### Block
#
# Hide one **block**. A block of a sequence is a contiguous run of tokens, here of length $L = \operatorname{round}(r v)$. It may start
# at any place where it fits, with equal chance:
#
# ```{math}
# :label: eq-block-mask
# \mathcal{T} = \{ s, \dots, s + L - 1 \}, \qquad s \sim \mathrm{Uniform}\{0, \dots, v - L\}
# ```
#
# **Predict.** Six tokens, a block of two. Is every token hidden equally often? The cell below writes out all five starts, one per
# row, and then does the same for a whole batch.

# %%
from jepa_lab.masking import block_mask

starts = torch.tensor([[s <= n < s + 2 for n in range(6)] for s in range(5)])
print(starts.int(), "\n\nhidden with probability", starts.double().mean(0).tolist())


def block_by_hand(valid, ratio, generator):
    v = valid.sum(1, keepdim=True)
    length = (v * ratio).round().long()
    start = (
        torch.rand(len(valid), 1, generator=generator) * (v - length + 1)
    ).long()  # 0 ... v - L
    place = (
        valid.cumsum(1) - 1
    )  # number of each slot among the real tokens, so that padding does not split a block
    return (place >= start) & (place < start + length) & valid


hidden = block_by_hand(ragged, 0.6, seeded(2))
package = block_mask(ragged, 0.6, generator=seeded(2))
torch.testing.assert_close(hidden[:, None], package.targets)
print("this is exactly jepa_lab.masking.block_mask")

# %% [markdown]
# No. The two ends are covered by one start each, the others by two. Uniform *placement* is not uniform *coverage*. Keep
# this in mind for later, when we judge samplers by their coverage: ends that are seldom hidden are no fault as such.
#
# ### Multi-block
#
# I-JEPA {cite}`assran2023ijepa` hides rectangles. It draws $M = 4$ **target blocks**, each with an area $a$ of 15 to 20 % of
# the grid and an aspect ratio $\rho$ (height over width) of 0.75 to 1.5. On a grid of $H \times W$ tokens a block has
#
# ```{math}
# :label: eq-block-size
# h = \operatorname{round}\sqrt{a H W \rho}, \qquad w = \operatorname{round}\sqrt{a H W / \rho},
# ```
#
# and its corner lies uniformly on the $(H - h + 1)(W - w + 1)$ places where it fits. The context is a large block,
# 85 to 100 % of the area, *minus* all targets. Targets may overlap each other. One block by hand, and `paint`, which turns
# corners and sizes into cells:


# %%
def paint(top, left, h, w, grid):
    """Rectangles as cells: [...] -> Bool[..., H, W]."""
    y, x = torch.arange(grid[0])[:, None], torch.arange(grid[1])
    top, left, h, w = (value[..., None, None] for value in (top, left, h, w))
    return (y >= top) & (y < top + h) & (x >= left) & (x < left + w)


area, aspect = 0.18 * 64, 1.2
h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
print(f"{area:.2f} cells of aspect {aspect} -> {h} x {w} = {h * w} cells")
print(f"fits at {8 - h + 1} x {8 - w + 1} places; here at row 2, column 1:")
paint(*torch.tensor([2, 1, h, w]), (8, 8)).int()

# %% [markdown]
# Rounding bends area and aspect a little, the more the smaller the grid. Now for all rows and blocks at once. Below it stand
# all three masks on the same sprites: the uncovered part is all that the context encoder gets.

# %%
from jepa_lab.masking import multiblock_mask


def uniform(u, low, high):
    return low + u * (high - low)


def rectangles(batch, blocks, grid, generator):
    u = torch.rand((4, batch, blocks), generator=generator)  # four independent numbers
    area = uniform(u[0], 0.15, 0.2) * grid[0] * grid[1]
    aspect = uniform(u[1], 0.75, 1.5)
    h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    top = (u[2] * (grid[0] - h + 1)).long()  # 0 ... H - h
    left = (u[3] * (grid[1] - w + 1)).long()
    return paint(top, left, h, w, grid)


everything = torch.ones(64, 64, dtype=torch.bool)  # 64 sprites, 64 tokens each
blocks = rectangles(64, 4, (8, 8), seeded(4))
multi = multiblock_mask(everything, (8, 8), generator=seeded(4))
torch.testing.assert_close(blocks.flatten(2), multi.targets)
assert not (multi.context & multi.targets.any(1)).any()
print("these are exactly the targets of jepa_lab.masking.multiblock_mask")


# %% mystnb={"image": {"alt": "Three rows of four sprites on an 8 by 8 grid. First row: random tokens covered. Second row: one block in raster order, a broad horizontal band. Third row: four overlapping rectangles covered, the rest mostly visible."}}
def codes(mask, grid):
    """0 neither, 1 context, 2 + m target block m: what plots.mask_grid draws."""
    code = mask.context.int()
    for m in range(mask.targets.shape[1]):
        code[mask.targets[:, m]] = 2 + m
    return code.view(-1, *grid)


three = {
    "random, 50 %": random_mask(everything, 0.5, seeded(4)),
    "block, 50 %": block_mask(everything, 0.5, generator=seeded(4)),
    "multi-block": multi,
}
shown = torch.cat([codes(mask, (8, 8))[:4] for mask in three.values()])
plots.mask_grid(
    shown,
    pictures[:4].repeat(3, 1, 1, 1),
    titles=[name for name in three for _ in range(4)],
)

# %% [markdown]
# A block in raster order is a horizontal band on a picture, because rows follow one another. For pictures one would rather hide
# rectangles. For a sequence, such as measurements over time, the block mask is the natural one.
#
# ### Multi-block needs a large enough grid
#
# A rectangle is harder to guess than single tokens because its *inner* cells have no visible neighbour. So how large must
# the grid be for a block to have inner cells at all?


# %%
def on_grid(side, n=4000):
    full = torch.ones(n, side * side, dtype=torch.bool)
    mask = multiblock_mask(full, (side, side), generator=seeded(0))
    block = mask.targets.view(-1, side, side)
    h, w = block.any(2).sum(1), block.any(1).sum(1)
    return h, w, mask.context.sum(1)


print("grid     shapes   cells     of the grid   inner cell   context: least, mean")
for side in (4, 5, 6, 7, 8, 14):
    h, w, left = on_grid(side)
    shapes = len({*zip(h.tolist(), w.tolist(), strict=True)})
    low, high = (h * w).min().item(), (h * w).max().item()
    share = f"{100 * low / side**2:.0f} - {100 * high / side**2:.0f} %"
    inner = ((h > 2) & (w > 2)).double().mean()
    print(f"{side:2} x {side:<2}{shapes:8}{low:7} - {high:<6}{share}", end="")
    print(f"{inner:13.0%}{left.min():15}, {left.double().mean():.0f}")

# %% [markdown]
# On 4 x 4 no block has an inner cell: every hidden token lies at the edge of its block. Sizes are
# coarse too: "15 to 20 %" comes out as anything between an eighth and a quarter. And chance can leave a single token of context.
# From 7 x 7 on most blocks have an inner cell, on 8 x 8 all of them. That is why this book asks for **7 x 7 tokens or more**
# for multi-block, and why the digits of chapter 01, with their 4 x 4 tokens, are masked at random. The package allows small
# grids, and refuses settings that leave no context in more than one draw of a hundred.
#
# ## What the context encoder sees
#
# Hidden tokens are *dropped*: `take_visible` collects what is left of each row, and pads short rows to the longest one.
# `put_back` returns everything to its slot. Two rows of four tokens, of width 2:

# %%
from jepa_lab.masking import put_back, take_visible

x = torch.arange(1.0, 17.0).view(2, 4, 2)
keep = torch.tensor([[True, False, True, True], [False, True, False, False]])
visible, real, index = take_visible(x, keep)
print("row 0:", visible[0].tolist(), "from slots", index[0, real[0]].tolist())
print("row 1:", visible[1].tolist(), "from slots", index[1, real[1]].tolist())
restored = put_back(visible, real, index, n_tokens=4, fill=-1.0)
print("put back:\n", restored.int())
assert torch.equal(restored[keep], x[keep])

# %% [markdown]
# Row 1 keeps one token, so two slots are padding. `real` marks them, and no attention looks at them. The
# alternative is to cut all rows to the shortest. It wastes nothing, but throws away context, and *which* context
# depends on how one cuts. We come back to this.
#
# ### Does anything leak?
#
# A leak test needs no theory: change what is hidden, and see whether the output for the visible tokens changes. We replace
# the hidden patches of each sprite by those of another sprite, and try four ways to hide them.

# %%
keep = multi.context
other = patchify(pictures.flip(0), 4)
other = torch.where(keep[..., None], patchify(pictures, 4), other)
originals, changed = pictures, unpatchify(other, 4, (8, 8))


def dropped(image):
    x = encoder.tokenize({"image": image}).x
    visible, real, index = take_visible(x, keep)
    return put_back(encoder.encode(visible, real), real, index, 64)


def attention_mask(image):
    return encoder.encode(encoder.tokenize({"image": image}).x, keep)


def blacked_out(image):
    dark = patchify(image, 4) * keep[..., None]
    return encoder({"image": unpatchify(dark, 4, (8, 8))})


def hidden_afterwards(image):
    return encoder({"image": image}) * keep[..., None]


# %%
leak, apart = {}, {}
print("way to hide          leak   difference from dropping")
with torch.no_grad():
    for way in (dropped, attention_mask, blacked_out, hidden_afterwards):
        name, here = way.__name__, way(originals)[keep]
        leak[name] = (here - way(changed)[keep]).abs().max().item()
        apart[name] = (here - dropped(originals)[keep]).abs().max().item()
        print(f"{name:20} {leak[name]:.1f}    {apart[name]:.1f}")

assert leak["dropped"] == leak["blacked_out"] == 0
assert leak["attention_mask"] < 1e-5 < 0.1 < leak["hidden_afterwards"]
assert apart["attention_mask"] < 1e-4 < 0.1 < apart["blacked_out"]

# %% [markdown]
# - *Dropped*: no change at all. What is not there cannot leak.
# - *Attention mask*: all tokens are computed, but none looks at a hidden one. The same numbers as dropping, up to rounding.
# - *Blacked out*: no content leaks either. But the dark tokens are still there, with their positions, and everything
#   attends to them. The encoder sees a picture with holes, and later, in use, it never sees one again.
# - *Hidden afterwards*: the output of hidden tokens is erased *after* the encoder. Too late: attention has already
#   carried their content to the visible ones. The predictor is then shown the answer. It is an easy mistake, because nothing looks wrong.
#
# ### Is it faster?
#
# **Predict.** Of 49 tokens, 16 are visible. Against encoding all 49, how much time does an attention mask save? And
# dropping? We time forward and backward passes by turns and keep the best of each, so that other load disturbs less.

# %% tags=["nbval-ignore-output"]
import time

images = torch.rand(64, 1, 28, 28, generator=seeded(0))
vit = image_encoder(images, EncoderConfig(patch=4))  # 7 x 7 tokens
x = vit.tokenize({"image": images}).x.detach()
every = torch.ones(64, 49, dtype=torch.bool)
seen = random_mask(every, 33 / 49, seeded(0)).context  # 16 of 49
ways = {
    "all 49 tokens": lambda: vit.encode(x, every),
    "attention mask": lambda: vit.encode(x, seen),
    "dropped": lambda: vit.encode(*take_visible(x, seen)[:2]),
}
best = dict.fromkeys(ways, float("inf"))
for _ in range(12):
    for name, way in ways.items():
        start = time.process_time()
        way().sum().backward()
        best[name] = min(best[name], time.process_time() - start)
for name, seconds in best.items():
    times = best["all 49 tokens"] / seconds
    print(
        f"{name:15} {1000 * seconds:5.1f} ms   {times:.1f} times as fast as all tokens"
    )


# %%
# eight repeats: dropping was 3.0 to 3.3 times as fast,
# the attention mask 0.96 to 1.12 times
assert best["all 49 tokens"] / best["dropped"] > 1.8
assert 0.75 < best["all 49 tokens"] / best["attention mask"] < 1.3
print("dropping pays, an attention mask does not")

# %% [markdown]
# An attention mask computes everything and then ignores most of it. Dropping computes a third and takes about a third of the
# time. In a JEPA the target encoder still reads all tokens, so a whole step gains less than this.
#
# ## A sampler with blind spots
#
# How can one see that a sampler is right? Draw many masks and count how often each cell is a target. For ours the answer is
# known. A block of $h$ rows has $H - h + 1$ places, and some of them cover row $y$. Counting these gives
#
# ```{math}
# :label: eq-coverage
# \begin{aligned}
# p(y \mid h) &= \frac{\min(y, H - h) - \max(0, y - h + 1) + 1}{H - h + 1}, \\
# p(y, x) &= \mathbb{E}_{h, w} \big[\, p(y \mid h)\; p(x \mid w) \,\big],
# \end{aligned}
# ```
#
# where the mean is over the sizes of {eq}`eq-block-size`. We compute that mean on a fine table of areas and aspect ratios.

# %%
side = 14  # the grid of a ViT-B/16 on 224 x 224 pixels


def row_coverage(h):
    y = torch.arange(side)
    return (torch.minimum(y, side - h) - (y - h + 1).clamp(min=0) + 1) / (side - h + 1)


middle = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
area = uniform(middle, 0.15, 0.2)[:, None] * side**2
aspect = uniform(middle, 0.75, 1.5)
h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
sizes = torch.stack([h.flatten(), w.flatten()])
sizes, counts = sizes.unique(dim=1, return_counts=True)
closed_form = torch.zeros(side, side, dtype=torch.float64)
for (h, w), share in zip(sizes.T, counts / counts.sum(), strict=True):
    closed_form += share * torch.outer(row_coverage(h), row_coverage(w))
corner, centre = closed_form[0, 0], closed_form[7, 7]
print(f"{sizes.shape[1]} sizes; hidden: a corner {corner:.3f}, the middle {centre:.3f}")


# %% [markdown]
# Now the published code of I-JEPA. Its sampling rule, in our own words and lines, has three departures from uniform, independent
# sampling:
#
# 1. the corner is drawn from $0 \dots H - h - 1$: the upper bound of the random integer is exclusive;
# 2. one random number sets both the area and the aspect ratio;
# 3. one size is drawn for a whole batch, and contexts are then cut to the shortest of the batch, in raster order.
#
# **Predict.** Which cells does each departure affect? We use batches of 64 pictures.


# %%
def published(n_batches, batch, generator):
    r = torch.rand(n_batches, 1, 1, generator=generator)  # area and aspect, per batch
    area = (uniform(r, 0.15, 0.2) * side**2).floor()
    aspect = uniform(r, 0.75, 1.5)
    h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    u = torch.rand(2, n_batches, batch, 4, generator=generator)
    top = (u[0] * (side - h)).long()  # 0 ... H - h - 1: the last place is never drawn
    left = (u[1] * (side - w)).long()
    targets = paint(top, left, h.expand_as(top), w.expand_as(top), (side, side))

    r = torch.rand(n_batches, 1, generator=generator)
    area = (uniform(r, 0.85, 1.0) * side**2).floor()
    size = area.sqrt().round().clamp(max=side - 1).long()  # less than the whole grid
    u = torch.rand(2, n_batches, batch, generator=generator)
    top, left = (u * (side - size)).long()
    size = size.expand_as(top)
    context = paint(top, left, size, size, (side, side)) & ~targets.any(2)
    shortest = context.sum((2, 3)).amin(1)[:, None, None]
    kept = context.flatten(2) & (context.flatten(2).cumsum(2) <= shortest)
    return targets, kept.view_as(context), context


# %% mystnb={"image": {"alt": "Two heat maps of a 14 by 14 grid, both bright in the middle and dark at the edges. Ours is symmetric; in the published rule the bright spot is shifted to the upper left and brighter, and the last row and the last column are exactly zero."}}
n = 20_000
full = torch.ones(n, side**2, dtype=torch.bool)
ours = multiblock_mask(full, (side, side), generator=seeded(0))
theirs, their_context, uncut = published(300, 64, seeded(0))
ours_map = ours.targets.double().mean((0, 1)).view(side, side)
their_map = theirs.double().mean((0, 1, 2))

assert (their_map[-1] == 0).all() and (their_map[:, -1] == 0).all()
assert (their_map[:-1, :-1] > 0).all()
error = (closed_form * (1 - closed_form) / (4 * n)).sqrt()  # standard error of a share
worst = ((ours_map - closed_form) / error).abs().max().item()
assert worst < 4.5  # the largest of 196 standard normal numbers is about 3
print(f"ours: at most {worst:.1f} standard errors from the closed form")
print("published rule: the last row and column are never hidden")
coverage = {"ours": 100 * ours_map, "published rule": 100 * their_map}
plots.heatmap(coverage, label="cell lies in a target block (%)", vmin=0)

# %% [markdown]
# Ours is dark at the edges too, as it must be: fewer places cover an edge. But it is the same on all four sides. The published
# rule never hides the last row and column. Nothing crashes, and no loss curve shows it. Only counting does.
#
# The second departure needs another count: the correlation between the area and the aspect ratio of the blocks. And a small grid
# has a trap of its own. The published code accepts a target block only if it has *more than* a set number of cells, 10
# in the published settings. If it has not, another *place* is drawn, not another size.


# %%
def correlation(blocks):
    h, w = blocks.any(-1).sum(-1).double(), blocks.any(-2).sum(-1).double()
    return torch.corrcoef(torch.stack([(h * w).flatten(), (h / w).flatten()]))[0, 1]


ours_r = correlation(ours.targets.view(n, 4, side, side)).item()
theirs_r = correlation(theirs[:, 0, 0]).item()
print(f"correlation of area and aspect: ours {ours_r:.2f}, published {theirs_r:.2f}")
assert abs(ours_r) < 0.15 < 0.4 < theirs_r

r = torch.linspace(0, 1, 10_001)
area, aspect = (uniform(r, 0.15, 0.2) * 64).floor(), uniform(r, 0.75, 1.5)
cells = (area * aspect).sqrt().round() * (area / aspect).sqrt().round()
few = (cells <= 10).double().mean()
print(f"8 x 8 tokens: {few:.0%} of the sizes have 10 cells or fewer and never end")
# on 14 x 14 nothing is ever redrawn, so we could leave that rule out
assert (theirs.sum((3, 4)) > 10).all() and (uncut.sum((2, 3)) > 10).all()

# %% [markdown]
# In the published rule small blocks tend to be wide and large blocks tall. The drawn numbers are tied completely; rounding to
# whole cells hides some of it, and leaves ours a trace of its own. The package never redraws targets, so it cannot hang.
#
# And the context?

# %% mystnb={"image": {"alt": "Two heat maps of a 14 by 14 grid. Ours: often context at the rim, least in the middle, symmetric. Published rule: the upper corners are nearly always context, the share falls towards the bottom, and the last row and column are zero."}}
seen_by = {
    "ours": 100 * ours.context.double().mean(0).view(side, side),
    "published rule": 100 * their_context.double().mean((0, 1)),
}
left = ours.context.sum(1).double().mean(), their_context.sum((2, 3)).double().mean()
lost = 1 - their_context.double().sum() / uncut.double().sum()
upper = their_context[..., :6, :].double().mean()
lower = their_context[..., 7:13, :].double().mean()
print(f"context tokens a picture: ours {left[0]:.0f}, published rule {left[1]:.0f}")
print(f"cut to match the shortest of 64: {lost:.0%} of the context")
print(f"share of context: rows 0 to 5 {upper:.0%}, rows 7 to 12 {lower:.0%}")
assert upper > lower + 0.2 and (their_context[..., -1, :].sum() == 0)
plots.heatmap(seen_by, label="cell is context (%)", vmin=0, vmax=100)

# %% [markdown]
# Here the first and the third departure meet. The last row and column are never context either, so the context encoder never
# trains on them. And cutting in raster order takes from the bottom. `take_visible` pads instead.
#
# Does it matter? I-JEPA works well all the same, and we have not measured what the departures cost at its size. What they do
# cost is a plain reading of the settings: "area 15 to 20 %, aspect 0.75 to 1.5" does not say that the two rise together, nor
# that the last row and column stay out.
#
# ## Turn the knob: how hard is the question?
#
# The easiest way to guess a hidden patch is to look at the patches next to it. So one number says much about a mask:
# **how far is a hidden token from the nearest visible one**, on average? At 1 all have a visible neighbour. The knobs show it
# above the pictures, over 1,000 masks, beside the share that the context encoder sees.
#
# **Predict.** At a ratio of 50 %, is a block farther from what is visible than the same number of random tokens? By how
# much? At which ratio does a random mask become as hard as a block mask at 50 %?


# %%
axis = torch.arange(8.0)
cell = torch.cartesian_prod(axis, axis)  # row and column of every token
between = torch.cdist(cell, cell)  # distance of any two, in cells
thousand = torch.ones(1000, 64, dtype=torch.bool)


def hardness(mask):
    """Share of tokens seen; mean distance of a hidden one to the nearest seen."""
    hidden = mask.targets.any(1)
    nearest = torch.where(mask.context[:, None, :], between, torch.inf).amin(2)
    return mask.context.float().mean().item(), nearest[hidden].mean().item()


def picture(mask):
    seen, distance = hardness(mask)
    fig = plots.mask_grid(codes(mask, (8, 8))[:4], pictures[:4])
    fig.suptitle(
        f"seen: {seen:.0%} of the tokens; a hidden one is {distance:.1f} cells away"
    )
    return fig


# %%
from jepa_lab.widgets import explore

KINDS = {"random": random_mask, "block": block_mask}


def draw_kind(mask, ratio):
    return picture(KINDS[mask](thousand, ratio, generator=seeded(6)))


def describe(mask, ratio):
    return f"Four sprites, {ratio:.0%} of their 8 by 8 tokens covered by a {mask} mask"


explore(
    draw_kind,
    mask=["random", "block"],
    ratio=[0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9],
    start={"mask": "random", "ratio": 0.5},
    fmt={"ratio": "{:.0%}"},
    alt=describe,
)

# %% mystnb={"image": {"alt": "Distance from a hidden token to the nearest visible one over the mask ratio. Random stays near 1 up to 60 percent and reaches about 2 at 90 percent; block rises from 1 to above 3. Multi-block, a dashed line, lies near 1.6."}}
ratios, lines = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], {}
for name, kind in KINDS.items():
    masks = [kind(thousand, ratio, generator=seeded(6)) for ratio in ratios]
    lines[name] = ([100 * r for r in ratios], [hardness(mask)[1] for mask in masks])
multiblock = hardness(multiblock_mask(thousand, (8, 8), generator=seeded(6)))[1]

scattered, block = (
    dict(zip(ratios, lines[kind][1], strict=True)) for kind in ("random", "block")
)
print(f"at 50 %: random {scattered[0.5]:.2f}, block {block[0.5]:.2f}", end=", ")
print(f"multi-block {multiblock:.2f}")
print(f"random at 80 %: {scattered[0.8]:.2f}, at 90 %: {scattered[0.9]:.2f}")
assert scattered[0.5] < 1.2 < multiblock < block[0.5]
assert scattered[0.8] < block[0.5] < scattered[0.9]
plots.curves(
    lines,
    "mask ratio (%)",
    "distance to a visible token (cells)",
    levels={"multi-block": multiblock},
)

# %% [markdown]
# Up to a ratio of one half nearly every randomly hidden token has a visible neighbour, so its content can often be filled in
# by continuing an edge or a colour. A block of half the tokens asks more than that: a random mask is as hard only
# at a ratio between 80 and 90 %. Multi-block hides about half of the tokens too, and is nearly as hard as the block.
#
# Its own knob is the size of the targets. **Predict** what happens to the *context* when four targets grow.


# %%
def draw_blocks(target_size, targets):
    scale = (target_size - 0.025, target_size + 0.025)
    drawn = multiblock_mask(thousand, (8, 8), targets, scale, generator=seeded(6))
    return picture(drawn)


def describe_blocks(target_size, targets):
    return f"Four sprites, target blocks: {targets} of about {target_size:.1%} each"


explore(
    draw_blocks,
    target_size=[0.075, 0.125, 0.175, 0.25, 0.35],
    targets=[1, 4],
    start={"target_size": 0.175, "targets": 4},
    fmt={"target_size": "{:.1%}"},
    alt=describe_blocks,
)

# %% [markdown]
# Four large targets leave little context, and they overlap so much that they ask the same thing several times. Larger targets
# are harder; more of them leave less context. I-JEPA's settings are one compromise, for photographs.
#
# ## How much to hide: the sweep
#
# Hardness is not the goal, a useful representation is. So we train the JEPA of chapter 01 on digits with nine masks, random and
# block, and grade each with the kNN probe on the test images. **Predict** the shape of the two curves: rising, falling,
# or with a peak? And which mask is better at 60 %?
#
# The runs come from `results/`, three seeds each; the command stands under *Scale up*. All else is the recipe of chapter 01. Its
# ratio of 60 % was fixed before this sweep, and nothing was chosen by these test scores. Whoever wants to choose a ratio
# should do it on the validation images.
#
# In the figure, lines are means and bands one standard deviation over the seeds. The table has the control rows of chapter 01 too.

# %% mystnb={"image": {"alt": "kNN accuracy over the mask ratio, random and block. Both rise to a peak at 40 percent and fall to 55 percent at the largest ratio; random lies above block in the middle. The band of block is wide. All lie between random init near 41 and raw input near 95 percent."}}
from jepa_lab.experiment import load_result
from jepa_lab.probes import collect

sweep, controls = load_result("digits_mask_ratio"), load_result("digits_jepa")
rows = []
for one in sweep["runs"]:
    kind, ratio = (part.split("=")[1] for part in one["overrides"])
    name = {"method": f"{kind} {float(ratio):.0%}", "CPU": one["core_seconds"]}
    rows += [row | name for row in one["rows"]]
table = collect(rows)
levels = [row for one in controls["runs"] for row in one["rows"]]
levels = collect(row for row in levels if row["method"] != "jepa")
knn = {row["method"]: torch.tensor(row["knn"]).double() for row in [*table, *levels]}

lines = {}
for kind, ratios in {"random": [20, 40, 60, 75, 90], "block": [20, 40, 60, 75]}.items():
    accuracy = torch.stack([knn[f"{kind} {ratio}%"] for ratio in ratios], dim=1)
    lines[f"{kind} mask"] = (ratios, 100 * accuracy)
shown = {name: 100 * knn[name].mean().item() for name in ("raw input", "random init")}
plots.curves(lines, "mask ratio (%)", "kNN accuracy, test (%)", levels=shown)

# %%
caption = "Digits, test images. Controls: 5 seeds. CPU: seconds of training."
plots.table(
    [*levels, *table],
    ["linear", "knn", "CPU"],
    units={"CPU": "s"},
    lower=["CPU"],
    bold=["linear", "knn"],
    caption=caption,
)

# %%
mean = {name: values.mean().item() for name, values in knn.items()}
for name, (ratios, accuracy) in lines.items():
    points = accuracy.mean(0)
    best, gain = ratios[points.argmax()], points.max() - points.min()
    print(f"{name}: best at {best} %, {gain:.0f} points above the worst ratio")

for ratio in ("20%", "75%", "90%"):
    assert knn["random 40%"].min() > knn[f"random {ratio}"].max()
for ratio in ("40%", "60%"):
    assert knn[f"random {ratio}"].min() > knn[f"block {ratio}"].max()
assert knn["random 60%"].max() > knn["random 40%"].min()  # these two overlap
for row in table:
    worst, best = min(row["knn"]), max(row["knn"])
    assert knn["random init"].max() + 0.05 < worst and best < mean["raw input"]

linear = {r["method"]: torch.tensor(r["linear"]).mean() for r in [*table, *levels]}
below = [r["method"] for r in table if linear[r["method"]] < linear["random init"]]
print(f"linear probe below the untrained encoder in {len(below)} of {len(table)}:")
print(", ".join(below))

# %% [markdown]
# ### What the sweep says
#
# - **Random masks have a peak.** Every run at 40 % beats every run at 20, 75 and 90 %. Hide little, and the question is easy
#   and asked of few tokens. Hide nearly all, and the context cannot answer. The 60 % of the recipe and 40 % overlap: three
#   seeds do not tell them apart. Block masks fall towards large ratios too, but their 20 % and 40 % are within the noise.
# - **Harder is not better.** At 40 % and 60 % every random run beats every block run, although a block is the harder question.
#   For photographs I-JEPA reports the opposite: much better features with multi-block than with random masks
#   {cite}`assran2023ijepa`. On 4 x 4 tokens a block of ten leaves six to answer from, all before or after it in
#   raster order. The second exercise finds one more reason, which holds at 60 % but not at 40 %.
# - **Block masks are a gamble.** Their spread over seeds is so wide that at 20 % nothing can be said about random against block.
# - **The probes disagree.** By kNN every run beats the untrained encoder. By the linear probe on pooled features some settings
#   do not; the cell above names them. And no setting reaches raw pixels, as in chapter 01.
#
# What would have refuted the peak: a best value at either end. The cell above would have failed.
#
# One of these runs, live: a random mask of 90 %, seed 0. Two tokens of 16 are left to see.

# %% tags=["nbval-ignore-output"]
from jepa_lab.masking import MaskConfig
from jepa_lab.objectives import JEPA, JEPAConfig
from jepa_lab.probes import probe
from jepa_lab.training import TrainConfig, Trainer

seed_all(0)
config = JEPAConfig(mask=MaskConfig(kind="random", ratio=0.9))
objective = JEPA(image_encoder(data["train"]["image"]), config, seed=0)
trainer = Trainer(objective, data["train"], TrainConfig(epochs=80))
trainer.fit()
live = probe(objective, data, tokens=False)
print(f"{trainer.core_seconds:.0f} core-seconds; kNN, this run: {live['knn']:.1%}")
print("stored:", ", ".join(f"{value:.1%}" for value in knn["random 90%"]))


# %%
low, high = knn["random 90%"].min().item(), knn["random 90%"].max().item()
assert (
    low - 0.03 < live["knn"] < high + 0.03
)  # three stored seeds, a margin of 3 points
assert mean["random init"] + 0.05 < live["knn"] < knn["random 40%"].min() - 0.1
print("the live run lands in the spread of the table, far below a ratio of 40 %")

# %% [markdown]
# ## Check your understanding
#
# :::{admonition} A random mask and a block mask hide the same number of tokens. Why is the block the harder question?
# :class: dropdown
# A randomly hidden token nearly always has a visible neighbour, and neighbouring patches resemble each other. The inner
# tokens of a block have none, so there is nothing nearby to copy from.
# :::
#
# :::{admonition} A colleague runs the encoder on all tokens and then sets the hidden outputs to zero. What does the predictor get to see?
# :class: dropdown
# The answer. Attention has mixed the hidden content into the visible outputs before anything was erased. Change
# the hidden part and look at the visible outputs: the leak test takes two forward passes.
# :::
#
# :::{admonition} An attention mask gives the same numbers as dropping. Why not use it?
# :class: dropdown
# It computes all tokens and saves no time. Dropping computes only those that are left. An attention mask is still needed
# for the padding of ragged rows, which is why `encode` takes `valid`.
# :::
#
# :::{admonition} The ends of a row are hidden less often by a block. Is the sampler wrong?
# :class: dropdown
# No. Fewer placements cover an end. Uniform placement and uniform coverage cannot both be had with blocks that stay
# inside the row. A wrong sampler shows itself by another sign: it disagrees with its closed form, for example by treating
# the last end unlike the first.
# :::
#
# :::{admonition} Why draw the size of a block anew for each picture, and not once per batch?
# :class: dropdown
# Pictures in a batch then differ in how much they hide, so one step averages over easy and hard questions. The price is
# ragged rows. One size per batch avoids them, and makes the difficulty jump from step to step.
# :::
#
# ```{exercise} Two views that share no token
# :label: ex-complementary
# A contrastive method needs two views of one picture. If the views share tokens, they can be matched by what they share. Write
# a function that returns two masks without a common visible token, for rows with padding. Check with `put_back` that together
# they restore every real token.
# ```
#
# ````{solution} ex-complementary
# :class: dropdown
# Draw one random mask; what it hides is the context of the other. The package has this as `complementary_masks`. With half of
# the tokens hidden the views are equally large.
# ````
#
# ```{exercise} The coverage of a block
# :label: ex-coverage
# A row has 16 tokens and a block hides 10 of them. With which probability is token $n$ hidden? Give the closed form, then
# check it against 20,000 draws. Which tokens are *always* hidden, and what does that mean for training?
# ```
#
# ````{solution} ex-coverage
# :class: dropdown
# The block has $16 - 10 + 1 = 7$ starts, and token $n$ is covered by those from $\max(0, n - 9)$ to $\min(n, 6)$. Tokens 6 to
# 9 are covered by all seven. They are never context, so the context encoder is not trained on the middle of the picture,
# although it must encode it later. Every ratio above one half has such a blind spot, and it grows with the ratio.
# ````
#
# Solution of the first exercise, executed:

# %% tags=["hide-cell"]
# Exercise "Two views that share no token"
from jepa_lab.masking import complementary_masks

one = random_mask(ragged, 0.5, seeded(0))
first, second = one.context, one.targets[:, 0]
assert not (first & second).any() and torch.equal(first | second, ragged)
x = torch.randn(256, 20, 3, generator=seeded(1))
both = sum(put_back(*take_visible(x, view), n_tokens=20) for view in (first, second))
torch.testing.assert_close(both, x.masked_fill(~ragged[..., None], 0.0), rtol=0, atol=0)
package = complementary_masks(ragged, 0.5, seeded(0))
assert torch.equal(package[0].context, first) and torch.equal(
    package[1].context, second
)
print("no common token; together they restore all")

# %% [markdown]
# Solution of the second exercise, executed:

# %% tags=["hide-cell"]
# Exercise "The coverage of a block"
n = torch.arange(16)
exact = (torch.minimum(n, torch.tensor(6)) - (n - 9).clamp(min=0) + 1) / 7
drawn = block_mask(
    torch.ones(20_000, 16, dtype=torch.bool),
    10 / 16,
    generator=seeded(0),
)
share = drawn.targets[:, 0].float().mean(0)
print("closed form, tokens 0 to 7: ", *(f"{p:.2f}" for p in exact[:8].tolist()))
print("            tokens 8 to 15:", *(f"{p:.2f}" for p in exact[8:].tolist()))
print("always hidden:", (share == 1).nonzero().flatten().tolist())
assert (share - exact).abs().max() < 0.015  # four standard errors

# %% [markdown]
# ## What to remember
#
# - A mask sets the question. Its shape and its ratio decide whether a hidden token can be copied from a neighbour.
# - Drop hidden tokens before the encoder: nothing can leak, and time goes down with their number. An attention mask saves none.
# - Multi-block needs 7 x 7 tokens or more. Below that its blocks almost never have an inside.
# - Test a sampler by counting, against a closed form. A blind row crashes nothing.
# - One can hide too little and too much. On digits 40 % was best, random beat block at 40 and 60 %, and the
#   harder question was not the better one.
#
# **Where the toy stops being true.** Digits have 16 tokens, so ratios are coarse, and a block is a band of rows rather than a rectangle. In
# photographs neighbouring patches resemble each other, which is a reason for high ratios and large blocks: a masked autoencoder hides 75 % {cite}`he2022mae`, and
# I-JEPA reports that multi-block beats random masks {cite}`assran2023ijepa`. Our sweep neither confirms nor refutes that. It shows how to ask.
#
# ## Scale up
#
# ```bash
# python -m jepa_lab train --config jepa_lab/configs/digits_mask_ratio.yaml
# ```
#
# Sprites with patches of 4 pixels have the 8 x 8 tokens that multi-block needs (not measured here):
#
# ```bash
# python -m jepa_lab train --config jepa_lab/configs/digits_jepa.yaml --name sprites_multiblock \
#     --data.name sprites --encoder.patch 4 \
#     --objective.mask.kind multiblock --objective.mask.n_blocks 4
# ```

# %% tags=["nbval-ignore-output"]
minutes, runs = sweep["core_seconds"] / 60, len(sweep["runs"])
reached = [mean[row["method"]] for row in table]
print(f"the sweep: {minutes:.0f} core-minutes for {runs} runs on {sweep['device']}")
print(f"mean kNN of its settings: {min(reached):.0%} to {max(reached):.0%}")
print(f"this chapter: {time.process_time():.0f} s of CPU time")
assert time.process_time() < 180  # twice the budget: this machine may be busy

# %% [markdown]
# ## References
#
# Patches as tokens are from the vision transformer {cite}`dosovitskiy2021vit`, dropping hidden tokens before the encoder is the
# masked autoencoder's {cite}`he2022mae`, and multi-block masks are I-JEPA's {cite}`assran2023ijepa`. We differ from I-JEPA's published
# code in four places, all of them in the sampler. Corners reach the last row and column. Area and aspect ratio are independent. Every block of every picture has its
# own size. And ragged contexts are padded, not cut. The first two make all places and all
# pairs of area and aspect ratio equally likely, the others follow from wanting the same distribution for every picture.
#
# **Next:** [Contrastive learning](04_contrastive), where two views of a picture are compared without any predictor.
