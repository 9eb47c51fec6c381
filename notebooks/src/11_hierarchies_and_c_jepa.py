# %% [markdown]
# # Hierarchies and C-JEPA
#
# **Claim.** Asked at several scales, a small JEPA of digits learns nothing more that five seeds could show. NT-Xent between two masked
# views adds much to kNN and to a probe with few labels; whether it adds the promised point of linear probe they cannot say, and at equal
# arithmetic nothing is left of it. SimCLR, the same loss without mask and predictor, is ahead of every JEPA here.

# %% [markdown]
# :::{admonition} At a glance
# :class: tip
# - **Goals**: pool targets in space, and not in a list; say when a JEPA of several scales is a plain JEPA; add NT-Xent and
#   check whom its gradient reaches; tell two methods apart that share a name; test a tuning rule before you follow it; read a
#   difference with its interval.
# - **Prerequisites**: [Masks](03_masks), [Contrastive learning](04_contrastive) and [VICReg](07_vicreg_and_sigreg). Terms are
#   in the [glossary](../book/glossary.md).
# - **Cost**: a good minute of CPU time on one thread, under 1 GB of memory; the last cell prints what it measured.
# - **Seeds**: live runs use seed 0. Tables name theirs.
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
# The digits of chapter 01 {cite}`alpaydin1998digits`, cut into 4 x 4 patches, of which a mask hides 60 %. What is hidden can be
# named at several scales. Left, the patches that the encoder sees (the others are grey). Then what may be asked: the hidden
# patches; the squares of 2 x 2 patches that hold a hidden one; the whole image.

# %%
from matplotlib.patches import Rectangle

from jepa_lab import style
from jepa_lab.masking import random_mask
from jepa_lab.objectives.hierarchical import pool_grid, touched


def frame_cells(ax, marked, pool):
    """A frame around each marked cell of pool x pool patches, which are 2 x 2 pixels."""
    side, n = 2 * pool, 4 // pool
    look = {"fill": False, "ec": style.COLORS["H-JEPA"], "lw": 2}
    for c in marked.nonzero().flatten().tolist():
        corner = (side * (c % n) - 0.42, side * (c // n) - 0.42)
        ax.add_patch(Rectangle(corner, side - 0.16, side - 0.16, **look))


# %% mystnb={"image": {"alt": "Two handwritten digits, a row each. First panel: the digit with most of its 16 patches greyed out. Then the same digit under three grids: 16 cells, of which the hidden ones are framed; 4 cells, all framed; one cell, framed."}}
from jepa_lab.data.images import digits

data = digits()
pair = data["train"]["image"][[3, 8], 0]
g = torch.Generator().manual_seed(1)
mask = random_mask(torch.ones(2, 16, dtype=torch.bool), 0.6, g)
fig, axes = style.figure(2, 4, height=3.7)
for row, image, seen, hidden in zip(axes, pair, *mask, strict=True):
    shown = seen.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    row[0].imshow(image.where(shown, 0.5), cmap="gray", vmin=0, vmax=1)
    row[0].set_title("what is seen")
    for ax, pool in zip(row[1:], (1, 2, 4), strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, alpha=0.55)
        frame_cells(ax, touched(hidden[None], (4, 4), pool)[0, 0], pool)
        ax.set_title(f"asked, pool {pool}")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
fig

# %% [markdown]
# ## The idea
#
# A JEPA predicts each hidden patch by itself. A patch of 2 x 2 pixels is a small thing to know about a digit. A
# **hierarchical JEPA** (H-JEPA) also predicts coarser things: the average over a square of patches, and over the whole image. LeCun sketched a hierarchy over
# time, each level with an encoder of its own {cite}`lecun2022path`. What we build is the smaller idea that image models use: one encoder,
# one predictor, targets at several **scales**.
#
# Let $h'_n$ be what the target encoder says of patch $n$ when it sees the whole image. Level $l$ has cells $C$, squares of
# $p_l \times p_l$ patches, and a cell's target is the mean of its patches. With $A_l$ the cells that hold a hidden patch,
#
# ```{math}
# :label: eq-h-jepa
# \mathcal{L}_{\text{JEPA}} = \sum_l w_l\, \frac{1}{|A_l|} \sum_{C \in A_l} d\Big(\hat y_C,\; \mathrm{LN}\big(\tfrac{1}{p_l^2} \sum_{n \in C} h'_n\big)\Big),
# \qquad w = (1,\ \tfrac12,\ \tfrac14),\quad p = (1, 2, 4),
# ```
#
# where $d$ is the smooth-L1 distance, LN the layer norm without scale, and $\hat y_C$ the predictor's answer to the question
# "what is there?", asked by the mean of the position codes of the cell plus a learned code of the level.
#
# ### By hand: neighbours in space, not in a list
#
# Sixteen tokens with one feature each, numbered like the pages of a book. Pool them 2 x 2.

# %%
tokens = torch.arange(16.0).view(1, 16, 1)
print(tokens.view(4, 4).int())
by_hand = torch.stack(
    [tokens.view(4, 4)[i : i + 2, j : j + 2].mean() for i in (0, 2) for j in (0, 2)]
)
torch.testing.assert_close(pool_grid(tokens, (4, 4), 2).flatten(), by_hand)
print("squares of four:", by_hand.tolist(), "(exactly pool_grid)")

# %% [markdown]
# It is easy to get this wrong. The tokens that a mask hides come as a *list*, and the quick way to make a list coarser is to
# average entries that stand next to each other in it:

# %%
hidden = torch.tensor([0, 3, 5, 6, 9, 10, 12, 15])
listed = torch.nn.functional.avg_pool1d(hidden.float()[None], 2)[0]
for a, b, mean in zip(
    hidden[::2].tolist(), hidden[1::2].tolist(), listed.tolist(), strict=True
):
    apart = ((a // 4 - b // 4) ** 2 + (a % 4 - b % 4) ** 2) ** 0.5
    print(f"tokens {a:2} and {b:2}, {apart:.1f} patches apart -> {mean}")

# %% [markdown]
# Tokens 0 and 3 lie at opposite ends of a row. Their mean is the target of no place at all, and
# after another mask the same entry of the list stands for other places. So: put the tokens back on their grid, then pool.
#
# ### Nothing learned behind the target encoder
#
# A level often gets a linear map of its own, and it is tempting to send prediction *and* target through it. Then the map is
# trained to make the two equal, and the map that makes everything equal is the constant one. A stop-gradient on the target does not help: the
# map's weights get their gradient through the prediction, and the target goes through the same weights. Such a map must be
# part of the moving average, or not be there. In ours it is not there, so that within a step nothing that is trained can
# move a target:

# %%
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import build_objective

few = {"image": data["train"]["image"][:64]}


def new(name, **settings):
    seed_all(0)
    return build_objective(name, image_encoder(data["train"]["image"]), **settings)


model = new("h_jepa")
before = model.level_targets(few)[1]
with torch.no_grad():
    for p in model.parameters():
        if p.requires_grad:
            p.add_(torch.randn_like(p))
after = model.level_targets(few)[1]
assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
print("targets a level:", [tuple(t.shape) for t in after], "- unmoved by the student")

# %% [markdown]
# One level of pool 1 is not *like* a JEPA. It is one, to the bit:

# %%
one = {"level_weights": (1.0,), "level_pools": (1,), "level_layers": (0,)}
flat, single = new("jepa"), new("h_jepa", **one)
assert torch.equal(flat(few)[0], single(few)[0])
loss, metrics = new("h_jepa")(few)
parts = [metrics[f"level_{i}_loss"].item() for i in range(3)]
torch.testing.assert_close(loss.item(), parts[0] + parts[1] / 2 + parts[2] / 4)
print(f"one level: {flat(few)[0]:.4f}, as JEPA. ", end="")
print(
    "three:",
    " + ".join(f"{w:g} x {v:.3f}" for w, v in zip((1, 0.5, 0.25), parts, strict=True)),
)

# %% [markdown]
# ## Adding a contrastive term
#
# A JEPA never compares two images. NT-Xent (chapter 04) does nothing else. The plan that this chapter tests joins them: two
# **augmented views** $v_1, v_2$ of every image, a JEPA loss in both, and NT-Xent between them.
#
# ```{math}
# :label: eq-c-jepa
# \mathcal{L} = 1.0\, \mathcal{L}_{\text{JEPA}}(v_1, v_2) + 0.1\, \mathcal{L}_{\text{NT-Xent}}(z_1, z_2;\, t = 0.1),
# \qquad z = \mathrm{head}\Big(\frac{1}{|\text{context}|} \sum_{n \in \text{context}} h_n\Big)
# ```
#
# The embedding of a view is the mean over its *context* tokens, the ones that its own mask left, through a projection head. So
# partners differ twice, by their augmentation and by their mask.

# %% mystnb={"image": {"alt": "Two rows of eight pictures. Top: eight digits, cropped, turned and masked in one way; below, the same eight digits, cropped, turned and masked in another way. Hidden patches are grey."}}
from jepa_lab.data.augment import DIGITS
from jepa_lab.objectives.two_view import augmented_pair
from jepa_lab.pictures import image_grid

g = torch.Generator().manual_seed(0)
views = augmented_pair(data["train"]["image"][:8], DIGITS, g)
seen = random_mask(torch.ones(16, 16, dtype=torch.bool), 0.6, g).context
shown = seen.view(16, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
image_grid(views.where(shown, 0.5))

# %% [markdown]
# **Predict.** With what weight do you expect the second term to matter? Compare the sizes of the two losses before training:

# %%
views = {"augmentation": DIGITS}
loss, metrics = new("c_jepa", **views)(few)
torch.testing.assert_close(
    loss, metrics["jepa_loss"] + 0.1 * metrics["contrastive_loss"]
)
for key in ("jepa_loss", "contrastive_loss", "contrastive_accuracy"):
    print(f"{key:20} {metrics[key]:.2f}")

# %% [markdown]
# ### Two numbers to watch, and one that was infinite
#
# `contrastive_pos_similarity` and `contrastive_neg_similarity` are mean cosines of partners and of others. They are read before the
# temperature divides them, or a "cosine" of 9 appears. And they are read before the diagonal is masked: a published
# code takes the mean over the *logits*, in which a row's own entry is $-\infty$.

# %%
from jepa_lab.losses import nt_xent

z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
z2 = torch.tensor([[0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]], dtype=torch.float64)
z = torch.cat([z1, z2])
itself = torch.eye(6, dtype=torch.bool)
logits = (z @ z.T / 0.1).masked_fill(itself, -torch.inf)
partner = torch.eye(6, dtype=torch.bool).roll(3, 1)
print("mean over the masked logits:", logits[~partner].mean().item())
by_hand = (z @ z.T)[~partner & ~itself].mean()
torch.testing.assert_close(nt_xent(z1, z2, 0.1)[1]["negative_cosine"], by_hand)
print(f"mean cosine of others: {by_hand:.4f}")

# %% [markdown]
# ### Whom does the gradient reach?
#
# The plan has a switch, `contrastive_on_context`. Off, its default there, it takes the embeddings from the *target* encoder, whose
# outputs are computed without gradient. Look at where the gradient of the contrastive term alone ends:


# %%
def reach(on_context):
    model = new("c_jepa", contrastive_on_context=on_context, **views)
    both = {"image": augmented_pair(few["image"], DIGITS, model.generator)}
    term = model.second(*model.head(model.embed(model.step(both))).chunk(2))[0]
    found = {}
    for part in ("encoder", "predictor", "head"):
        weights = list(getattr(model, part).parameters())
        grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        found[part] = sum(0.0 if x is None else x.square().sum().item() for x in grads)
    return found


for on_context in (True, False):
    reached = {
        part: "yes" if size > 0 else "no" for part, size in reach(on_context).items()
    }
    print(f"contrastive_on_context={on_context!s:5}", reached)
assert reach(False)["encoder"] == 0 < reach(True)["encoder"]

# %% [markdown]
# Off, the term trains a head that is thrown away, and the encoder learns what it would have learned without the term. The logged loss falls all the
# same. So the switch is on by default here. This is our first departure from the plan.
#
# ## Two methods, one name
#
# | | here `c_jepa` (the plan) | here `c_jepa_vicreg` (the paper) |
# |:--|:--|:--|
# | from | a plan, never trained | Mo and Tong 2024 {cite}`mo2024cjepa` |
# | second loss | NT-Xent, with temperature | VICReg, 25 / 25 / 1 |
# | negatives | all other images | none |
# | JEPA | three scales | one |
#
# The paper's "contrastive" is VICReg, whose terms hold no image against another. Its published gain on ImageNet is where the
# plan's promise of +0.8 to 1.0 points of linear probe seems to come from. It cannot be quoted for a loss with negatives.
#
# ### Two ways to ask for it, and no third
#
# `name: c_jepa`, or `use_contrastive: true` beside `name: h_jepa` (or `jepa`, for one scale). A setting that
# does not fit is an error. In a code where it is ignored, a run with the wrong loss looks like a run:

# %%
from jepa_lab.config import build, parse


def settings(*arguments):
    return parse(["--name", "x", *(f"--objective.{one}" for one in arguments)])


named = build(settings("name=c_jepa", "contrastive_weight=0.3")).objective
switched = build(
    settings("name=h_jepa", "use_contrastive=true", "contrastive_weight=0.3")
).objective
assert named == switched
print(
    f"equal: weight {named.contrastive_weight}, temperature {named.contrastive_temperature}"
)
for wrong in (
    ["name=h_jepa", "contrastive_weight=0.3"],
    ["name=c_jepa_vicreg", "use_contrastive=true"],
):
    try:
        settings(*wrong)
    except Exception as error:
        print("error:", str(error)[:96])

# %% [markdown]
# ## Turn weight and temperature
#
# Four short runs (6 epochs, one scale, to save time), two weights times two temperatures. The mask hides 3 of 16 patches here, not
# 60 %; the end of the chapter shows why that matters.
#
# **Predict.** Which of the four has the most even spectrum? Does a higher weight always help the probe?

# %%
from jepa_lab.masking import MaskConfig
from jepa_lab.probes import extract, probe
from jepa_lab.training import TrainConfig, Trainer

WEIGHTS, TEMPERATURES = (0.1, 1.0), (0.1, 0.5)
short, runs = TrainConfig(epochs=6, warmup_steps=10), {}


def train(weight, temperature):
    term = {"contrastive_weight": weight, "contrastive_temperature": temperature}
    term |= {"mask": MaskConfig(ratio=0.2), "use_contrastive": True}
    model = new("jepa", **term, **views)
    history = Trainer(model, data["train"], short).fit()
    runs[weight, temperature] = (model, history)


for temperature in TEMPERATURES:
    train(0.1, temperature)

# %%
for temperature in TEMPERATURES:
    train(1.0, temperature)
scores = {
    key: probe(model, data, "validation", tokens=False)
    for key, (model, _) in runs.items()
}

# %%
order = data["validation"]["label"].argsort(stable=True)


def draw(weight, temperature):
    x = extract(runs[weight, temperature][0], data["validation"])[0][order]
    x = x - x.mean(0)
    unit = torch.nn.functional.normalize(x, dim=1)
    fig, [axes] = style.figure(1, 3, height=2.4)
    axes[0].imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1)
    axes[0].set(title="cosines, by class", xticks=[], yticks=[])
    s = torch.linalg.svdvals(x)
    axes[1].semilogy(range(1, 65), s / s[0], color=style.COLORS["C-JEPA"])
    axes[1].set(title="spectrum", xlabel="direction", ylim=(1e-3, 1.3))
    row = scores[weight, temperature]
    values = [100 * row["knn"], 100 * row["linear"]]
    bars = axes[2].bar(["kNN", "linear"], values, color=style.COLORS["C-JEPA"])
    axes[2].bar_label(bars, fmt="%.0f")
    axes[2].set(title="validation (%)", ylim=(0, 100))
    return fig


# %% tags=["nbval-ignore-output"]
from jepa_lab.widgets import explore

explore(
    draw,
    weight=list(WEIGHTS),
    temperature=list(TEMPERATURES),
    alt=lambda weight, temperature: (
        f"Similarities, spectrum and probes at weight {weight}, temperature {temperature}"
    ),
)

# %% tags=["nbval-ignore-output"]
print("weight temperature  kNN %  rank  accuracy  cosines: partners, others")
last = {}
for (weight, temperature), (_, history) in runs.items():
    last[weight, temperature] = {  # means over the last epoch of 15 steps
        key: sum(history[f"contrastive_{key}"][-15:]) / 15
        for key in ("accuracy", "pos_similarity", "neg_similarity")
    }
    a, pos, neg = last[weight, temperature].values()
    row = scores[weight, temperature]
    print(
        f"{weight:6} {temperature:11} {100 * row['knn']:6.1f} {row['rankme']:5.1f} "
        f"{a:9.2f} {pos:12.2f} {neg:8.2f}"
    )

# %%
for t in TEMPERATURES:
    assert scores[1.0, t]["knn"] > scores[0.1, t]["knn"] + 0.02
    assert scores[1.0, t]["rankme"] > scores[0.1, t]["rankme"]
assert last[1.0, 0.5]["neg_similarity"] < last[1.0, 0.1]["neg_similarity"] - 0.1

# %% [markdown]
# After these few steps more weight is better, at either temperature: more directions in use, and a higher kNN. The higher
# temperature pushes the others further away and finds the partners less often (chapter 04 says why).

# %% [markdown]
# ## A tuning rule, tested
#
# The plan comes with rules: *accuracy above 0.95: raise the weight; below 0.8: lower the temperature.* The accuracy is the share of embeddings whose nearest
# other embedding is their partner. Before any rule: what is its scale? Take one of the trained models, leave it as it is, and ask it with fewer images at a time.

# %% tags=["nbval-ignore-output"]
model = runs[1.0, 0.1][0]
found = {}
for n in (8, 32, 128, 512):
    model.generator.manual_seed(0)
    few_images = data["train"]["image"][:1000].split(n)
    with torch.no_grad():
        hits = [
            model({"image": x})[1]["contrastive_accuracy"]
            for x in few_images
            if len(x) == n
        ]
    found[n] = (sum(hits) / len(hits)).item()
    print(f"batch {n:3}: accuracy {found[n]:.2f}")

# %%
assert found[8] > 1.5 * found[32] and found[32] > 1.5 * found[128] > 1.5 * found[512]

# %% [markdown]
# The same weights, four accuracies. A threshold for the accuracy is a threshold for the batch size, unless the batch is stated with it. At the
# batches of this chapter, does the rule at least point the right way? On validation images, one seed (10), 16 epochs, three scales:

# %% mystnb={"image": {"alt": "Validation accuracy of kNN against the weight of NT-Xent, from 0 to 1, one line for each of two temperatures."}}
from jepa_lab.experiment import load_result

grid = {}
for run in load_result("digits_c_jepa_grid")["runs"]:
    weight, temperature = (float(part.split("=")[1]) for part in run["overrides"])
    grid[weight, temperature] = run["rows"][-1]
lines = {}
for t in (0.1, 0.3):
    ws = sorted(w for w, other in grid if other == t)
    lines[f"temperature {t}"] = (ws, [100 * grid[w, t]["knn"] for w in ws])
plots.curves(
    lines,
    "weight of NT-Xent",
    "kNN, validation (%)",
    levels={"weight 0": 100 * grid[0.0, 0.1]["knn"]},
)

# %%
without = grid[0.0, 0.1]["knn"]
with_term = [row["knn"] for (w, _), row in grid.items() if w > 0]
assert min(with_term) > without + 0.05
ahead = [grid[w, 0.1]["knn"] > grid[w, 0.3]["knn"] for w in ws]
assert sum(ahead) == 4 and len(ahead) == 5
print(f"kNN without the term {without:.1%}, with it {min(with_term):.1%} or more")

# %% [markdown]
# Any of these weights lifts kNN above the weight of 0, and from the smallest to one twenty times as large there is no trend that
# one seed could show; the five seeds of the table below differ among themselves by as much. The lower temperature is ahead at four
# weights of five. So the rule points the right way here, on one seed. But no accuracy that we measured at a batch of 64 comes near its 0.8: it says
# "lower the temperature" to all of them, and will not say when to stop. We kept the plan's 0.1 and 0.1.
#
# ## The table
#
# Equal steps: 16 epochs in batches of 64 images, for all. A step of C-JEPA does twice the arithmetic of one of H-JEPA, since it has two views. So a
# second table gives every method the arithmetic of 16 epochs of H-JEPA. What is a step worth?

# %%
from jepa_lab.flops import step_flops

names = ("h_jepa", "c_jepa", "jepa", "c_jepa_vicreg", "contrastive", "mae")
cost = {}
for name in names:
    extra = views if name in ("c_jepa", "c_jepa_vicreg", "contrastive") else {}
    cost[name] = step_flops(new(name, **extra), few)
for name in names:
    epochs = 16 * cost["h_jepa"] / cost[name]
    print(
        f"{name:14} {cost[name] / 1e9:.2f} GFLOP a step, equal to {epochs:.0f} epochs"
    )

# %%
from jepa_lab.probes import collect


def method_rows(name):
    rows = []
    for run in load_result(name)["runs"]:
        label = run["case"]
        own = {"method": label, "core-s": run["core_seconds"]}
        rows += [*run["rows"][:-1], run["rows"][-1] | own]
    return collect(rows)


equal_steps = method_rows("digits_c_jepa")
show = {
    "metrics": ["linear", "knn", "linear few", "core-s"],
    "units": {"core-s": ""},
    "digits": {"core-s": 0},
    "bold": ["linear", "knn", "linear few"],
}
plots.table(equal_steps, **show, caption="Digits, test images, equal steps.")

# %% mystnb={"image": {"alt": "Dots with bars of one standard deviation: kNN accuracy on digits of three control rows and seven methods. Raw input and supervised are above 90 percent, SimCLR follows, the JEPAs lie between random init and 60 percent."}}
plots.dots(equal_steps[1:], "knn", xlabel="kNN on digits, equal steps (%)")

# %% [markdown]
# "Few" is a probe that sees 1 % of the labels, ten of them; "core-s" are seconds of CPU time to train one model. Read the rows from below:
#
# - **Raw pixels** are ahead of every method on kNN and on the linear probe. These are digits of 8 x 8 pixels, centred and upright.
# - **JEPA and H-JEPA** are where the untrained encoder is. Sixteen epochs are 240 steps, and the JEPA of chapter 01 had five times
#   as many. Three scales cost a fifth more arithmetic and show no gain.
# - **A second loss** of either kind, NT-Xent or VICReg, lifts kNN and the probe with few labels well above that. So does MAE, for
#   less than half of the time.
# - **SimCLR** is ahead of all of them, for less time than any two-view JEPA.
#
# At equal arithmetic:

# %%
equal_flops = method_rows("digits_c_jepa_flops")
plots.table(equal_flops, **show, caption="Digits, test images, equal arithmetic.")

# %% [markdown]
# H-JEPA is as in the table before. MAE, whose step is the cheapest, gains by this count and comes second. Both two-view JEPAs fall back
# to within a few points of the plain one.
#
# ### Changed pictures
#
# The same probes, trained on the pictures as they are and asked about changed ones: with noise of standard deviation 0.2, shifted by
# up to one pixel of eight, turned by up to half a radian.
#
# **Predict.** Three methods were trained on turned and cropped pictures. On which columns should it show?

# %%
changed = ["linear noise", "linear shift", "linear rotation"]
plots.table(equal_steps, ["linear", *changed], caption="Digits, changed test images.")

# %% [markdown]
# SimCLR, trained on crops and turns, loses least of its accuracy to a shift or a turn, and is there ahead of raw pixels and of the
# supervised network. NT-Xent beside H-JEPA helps in these two columns as well. Noise was in no augmentation, and there the gain is not
# clear. The table cannot tell what the loss did from what the augmentation did: H-JEPA has seen upright pictures only.
#
# ### The promise
#
# +0.8 to 1.0 points of linear probe over H-JEPA. Runs with one seed share the labels of their probes and the order of their
# batches, so take the difference seed by seed. Its 95 % interval (Student's t, the package's `paired_interval`):

# %%
from jepa_lab.tables import paired_interval

steps = {row["method"]: row for row in equal_steps}
flops = {row["method"]: row for row in equal_flops}
pair = "H-JEPA + NT-Xent"
compared = {
    "NT-Xent, equal steps": (steps[pair], steps["H-JEPA"]),
    "NT-Xent, equal arithmetic": (flops[pair], steps["H-JEPA"]),
    "scales": (steps["H-JEPA"], steps["JEPA"]),
    "VICReg, not NT-Xent": (steps["JEPA + VICReg"], steps[pair]),
    "no mask, no predictor": (steps["SimCLR"], steps[pair]),
    "H-JEPA, not untrained": (steps["H-JEPA"], steps["random init"]),
}
gain = {}
for label, (one, other) in compared.items():
    for metric in ("linear", "knn", "linear few"):
        gain[label, metric] = paired_interval(one[metric], other[metric])
    texts = [gain[label, m].text(100) for m in ("linear", "knn")]
    print(f"{label:26} linear {texts[0]:20} kNN {texts[1]}")

# %%
by_steps, by_flops = "NT-Xent, equal steps", "NT-Xent, equal arithmetic"
assert gain[by_steps, "linear"].low < 0 and gain[by_steps, "linear"].high > 0.01
assert gain[by_steps, "knn"].low > 0.05 and gain[by_steps, "linear few"].low > 0.02
assert gain[by_flops, "knn"].low < 0 < gain[by_flops, "knn"].high
assert gain[by_flops, "linear"].low < 0 < gain[by_flops, "linear"].high
for label in ("scales", "H-JEPA, not untrained", "VICReg, not NT-Xent"):
    assert gain[label, "knn"].low < 0 < gain[label, "knn"].high
    assert gain[label, "linear"].low < 0 < gain[label, "linear"].high
assert gain["no mask, no predictor", "knn"].low > 0.1
for name in (pair, "JEPA + VICReg", "JEPA"):
    assert paired_interval(flops["MAE"]["knn"], flops[name]["knn"]).low > 0.05
learned = [row for name, row in steps.items() if row.get("core-s")]
for metric in ("knn", "linear"):
    others = [max(row[metric]) for row in learned if row["method"] != "SimCLR"]
    assert max(others) < max(steps["SimCLR"][metric]) < min(steps["raw input"][metric])
for metric in ("linear shift", "linear rotation"):
    assert paired_interval(steps[pair][metric], steps["H-JEPA"][metric]).low > 0.01
    for control in ("raw input", "supervised"):
        d = paired_interval(steps["SimCLR"][metric], steps[control][metric])
        assert d.low > 0.005
noise = [steps[name]["linear noise"] for name in (pair, "H-JEPA")]
assert paired_interval(*noise).low < 0

# %% [markdown]
# At equal steps the mean gain of the linear probe is near the promised one, and its interval reaches from a loss of two points to a gain
# of nearly three. Five seeds of this spread neither keep the promise nor break it. What they do show is larger, and elsewhere: in kNN,
# which needs a good geometry and not only a readable code. At equal
# arithmetic, eight epochs in place of sixteen, that gain is gone. Twice the work by itself is not what helped: the
# weight of 0 above has it, and stays low. But the loss needs the steps that its second view pays for.
#
# VICReg in the place of NT-Xent, and with it the method of the paper, comes to the same within the intervals, without a
# negative and with one scale.
#
# ### One row live
#
# H-JEPA with NT-Xent again, seed 0, as in the table. This time look at its contrastive accuracy, too.

# %% tags=["nbval-ignore-output"]
model = new("c_jepa", **views)
history = Trainer(model, data["train"], TrainConfig(epochs=16)).fit()
live = probe(model, data, tokens=False)
epochs = torch.tensor(history["contrastive_accuracy"]).view(16, 15).mean(1)
print(f"kNN {live['knn']:.1%}, linear {live['linear']:.1%}")
print("contrastive accuracy an epoch:", [round(x, 3) for x in epochs.tolist()])
print(f"by chance, with 127 candidates: {1 / 127:.3f}")

# %%
for metric in ("knn", "linear"):
    stored = steps[pair][metric]
    assert min(stored) - 0.03 < live[metric] < max(stored) + 0.03
assert epochs.max() < 0.05
print("the live run lands in the spread of the table")

# %% [markdown]
# The contrastive loss is trained, at a tenth of the weight, and after 240 steps an embedding hardly ever finds its partner. Two suspects:
# the weight, and the mask, which leaves 6 of 16 patches in either view, of which two partners share about two. Take the knob's strongest
# run, weight 1, and hide as much as the table does:

# %% tags=["nbval-ignore-output"]
term = {"contrastive_weight": 1.0, "use_contrastive": True}
model = new("jepa", **term, **views)  # its mask hides 60 %
history = Trainer(model, data["train"], short).fit()
more_hidden = sum(history["contrastive_accuracy"][-15:]) / 15
less_hidden = last[1.0, 0.1]["accuracy"]
print(
    f"accuracy, 3 patches hidden: {less_hidden:.3f}; 10 patches hidden: {more_hidden:.3f}"
)
assert less_hidden > 2.5 * more_hidden

# %% [markdown]
# It is the mask, at full weight too. And yet the term lifted kNN in the table. We suspect the other half of NT-Xent: it pushes embeddings
# apart, partner found or not, and the features of H-JEPA need that most. VICReg, which only spreads and aligns, does as much.
#
# What makes a good question for the predictor leaves the comparison with too little. SimCLR sees whole views. A
# C-JEPA that encodes each view once more, whole, for its second loss would cost about as much more as a step of SimCLR; we have not tried it.
#
# ## Check your understanding
#
# :::{admonition} The contrastive loss falls, the probe does not move. What do you look at first?
# :class: dropdown
# Whether the gradient of the term reaches the encoder at all. A head on frozen features lowers the loss by itself.
# :::
#
# :::{admonition} Your colleague reports a contrastive accuracy of 0.97. What do you ask?
# :class: dropdown
# At what batch size, and with which augmentation. With 8 images a batch it means little.
# :::
#
# :::{admonition} Why is the target of a coarse cell not passed through a linear layer of its own?
# :class: dropdown
# If the layer is trained by the loss, it can make all targets equal. It would have to follow the moving average, like the rest of the target encoder.
# :::
#
# ```{exercise} The weights of the levels
# :label: ex-level-weights
# Show, with one forward pass each, that the loss is linear in the weights of the levels.
# ```
#
# ````{solution} ex-level-weights
# :class: dropdown
# Take each level alone, then a mixture. The hidden cell does it.
# ````

# %% tags=["hide-cell"]
alone = [
    new("h_jepa", level_weights=tuple(float(i == j) for j in range(3)))(few)[0].item()
    for i in range(3)
]
mixed = new("h_jepa", level_weights=(0.3, 2.0, 0.7))(few)[0].item()
assert abs(mixed - (0.3 * alone[0] + 2.0 * alone[1] + 0.7 * alone[2])) < 1e-4 * mixed
print(f"mixture {mixed:.4f}, sum of the levels by themselves the same")

# %% [markdown]
# ## What to remember
#
# - Pool targets in space. A list of hidden tokens has no coarser version.
# - Nothing that the loss trains may stand between the target encoder and a target.
# - One level is JEPA, to the bit; a setting of weight zero, likewise, is the control that every added term needs.
# - Check that the gradient of a new term reaches what you want to change.
# - "C-JEPA" names two methods, of which one has negatives.
# - A mask that suits the prediction can starve the comparison. Watch both.
# - Two views double the arithmetic. Say whether a gain is one per step or one per operation.
#
# **Where we depart from the plan.** The embeddings come from the context encoder, since from the target encoder they carry no
# gradient. Both views are predicted; the plan discards one. Targets are pooled in space. Metrics are cosines, before the
# temperature. There is no class token: a view is the mean of its context tokens.
#
# **Where the toy stops being true.** Digits of 8 x 8 pixels, 16 tokens, 0.1 million weights, and fewer steps than any JEPA needs. The
# weights of the second losses are those of the plan, of the paper's order and of chapter 07; they were not tuned for this table. On Fashion-MNIST
# the comparison is prepared, with transfer to digits, and so is the pair of the promise with 80 epochs on digits. Neither has been run:
# their commands are the last two below.
#
# ## Scale up
#
# ```bash
# python -m jepa_lab train --config jepa_lab/configs/digits_c_jepa.yaml
# python -m jepa_lab train --config jepa_lab/configs/digits_c_jepa_flops.yaml
# python -m jepa_lab train --config jepa_lab/configs/digits_c_jepa_grid.yaml
# python -m jepa_lab train --config jepa_lab/configs/digits_c_jepa_long.yaml
# python -m jepa_lab train --config jepa_lab/configs/fashion_c_jepa.yaml
# ```

# %% tags=["nbval-ignore-output"]
import time

for name in ("digits_c_jepa", "digits_c_jepa_flops", "digits_c_jepa_grid"):
    result = load_result(name)
    minutes, number = result["core_seconds"] / 60, len(result["runs"])
    print(f"{name}: {minutes:.0f} core-minutes, {number} runs, {result['device']}")
print(f"this chapter so far: {time.process_time():.0f} s of CPU time")
assert time.process_time() < 180  # twice the budget: this machine may be busy

# %% [markdown]
# ## References
#
# Hierarchies of JEPAs: {cite}`lecun2022path`; masks and predictor are I-JEPA's {cite}`assran2023ijepa`. NT-Xent is SimCLR's
# {cite}`chen2020simclr`. The method whose name the plan took is C-JEPA {cite}`mo2024cjepa`, with the terms of VICReg
# {cite}`bardes2022vicreg`.
#
# **Next**: [Steering](12_steering) puts a prediction to use, in a search with a hint, and meets a collapse that the search
# itself sees late.
