# %% [markdown]
# # A collapse gallery
#
# **Claim.** Representations collapse in two ways, to a point and to a subspace, and each of the usual numbers is blind to
# one of them. A standard deviation and a rank together see both; accuracies of probes and the loss do not.

# %% [markdown]
# :::{admonition} At a glance
# :class: tip
# - **Goals**: compute six collapse metrics by hand; say what each is blind to; cause a collapse of either kind and name
#   it; read a JEPA loss; use `diagnose` and `CollapseMonitor` on your own model.
# - **Prerequisites**: [JEPA in a minute](01_jepa_in_a_minute); [Contrastive learning](04_contrastive) for views and
#   uniformity. Terms are in the [glossary](../book/glossary.md), letters in the [notation](../book/notation.md).
# - **Cost**: about a minute of CPU time on one thread, under 1 GB of memory; the last cell prints what it measured.
# - **Seeds**: live runs use seed 0. The gallery holds five seeds per case, trained by the command under *Scale up*.
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
# The digits of chapter 01 {cite}`alpaydin1998digits`, 8 x 8 grey pixels. Top row: eight images. Below: two views of each,
# as in chapter 04. Some models of this chapter learn from views, others from masks.

# %% mystnb={"image": {"alt": "Three rows of eight pictures. The top row shows handwritten digits, the two rows below show cropped, slightly turned and brighter or darker versions of them."}}
from jepa_lab.data.augment import DIGITS, augment
from jepa_lab.data.images import digits

data = digits()
first = data["train"]["image"][:8]
views = [augment(first, DIGITS, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
plots.image_grid(torch.cat([first, *views]))

# %% [markdown]
# An encoder turns $n$ images into a table of $n$ rows and $D = 64$ features. Everything below asks one question of such a
# table: *do the rows still say which image they came from?* No label is needed to ask it.
#
# ## Six clouds
#
# Before any encoder, tables whose state we know. Each has 512 rows.

# %% mystnb={"image": {"alt": "Four tables of cosine similarities between 32 rows. Healthy: a dark red diagonal on a pale ground. Offset: dark red throughout. Subspace: a patchwork of strong reds and blues. Duplicates: a pale ground with the diagonal repeated twice more."}}
g = torch.Generator().manual_seed(0)
noise = torch.randn(512, 64, generator=g, dtype=torch.float64)
three = torch.randn(3, 64, generator=g, dtype=torch.float64)  # three directions
clouds = {
    "healthy": noise,  # a Gaussian: every direction alike
    "tiny": 1e-6 * noise,  # the same, a millionth of the size
    "offset": noise + 5,  # the same, far from the origin
    "point": 1 + 1e-6 * noise,  # one vector, and noise of a millionth
    "subspace": noise[:, :3] @ three,  # 3 of 64 directions
    "duplicates": noise[:12].repeat(43, 1)[:512],  # 12 different rows, many times
}


def cosines(z, rows=32):
    u = torch.nn.functional.normalize(z[:rows], dim=1)
    return u @ u.T


shown = ("healthy", "offset", "subspace", "duplicates")
plots.similarity({name: cosines(clouds[name]) for name in shown})

# %% [markdown]
# These are the cosines between the first 32 rows. Of the four clouds shown, *healthy* has a clean diagonal, *offset* makes
# all rows alike, *subspace* leaves strong chance similarities of both signs, and *duplicates* repeats itself. *Tiny* would
# look like *healthy*, and *point* would be uniformly dark red.
#
# **Predict before you measure.** Which of the six have collapsed? Which number could tell?
#
# ## Six numbers by hand
#
# Let $u_i = h_i / \lVert h_i \rVert$ be row $i$ scaled to length 1, and $\sigma_k$ the singular values of the table.
#
# ```{math}
# :label: eq-collapse-sphere
# \mathrm{std} = \frac{1}{\sqrt D} \sum_{d=1}^{D} \operatorname{sd}_i (u_{id}), \qquad
# \overline{\cos} = \frac{1}{n(n-1)} \sum_{i \neq j} u_i \cdot u_j, \qquad
# \mathrm{uniformity} = \log \frac{1}{n(n-1)} \sum_{i \neq j} e^{-2 \lVert u_i - u_j \rVert^2}
# ```
#
# The first is the spread of chapter 01 {cite}`chen2021simsiam`, the third is from chapter 04 {cite}`wang2020alignment`.
# They look at where the rows lie on the sphere. The other three look at directions:
#
# ```{math}
# :label: eq-collapse-rank
# \mathrm{rank} = \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \quad p_k = \frac{\sigma_k}{\sum_l \sigma_l}; \qquad
# \log \lambda_k \approx c - \alpha \log k, \quad \lambda_k = \sigma_k^2
# ```
#
# With the mean row subtracted, the left one is the **effective rank** {cite}`roy2007effective`, here called *centred
# rank*. Without subtracting, and with $10^{-7}$ added to each $p_k$, it is **RankMe** {cite}`garrido2023rankme`. The
# exponent $\alpha$ of the centred spectrum is **alpha-ReQ** {cite}`agrawal2022alphareq`: near 1 in good vision networks,
# near 0 for a flat spectrum, large when few directions hold everything.
#
# Four rows in the plane, small enough to check by eye:

# %%
import math

import torch.nn.functional as F

toy = torch.tensor([[3, 1], [3, -1], [1, 3], [1, -3]], dtype=torch.float64)
mean = toy.mean(0)
print("mean row", mean.tolist())
for name, x in {"as they are": toy, "centred": toy - mean}.items():
    sigma = torch.linalg.svdvals(x)
    p = sigma / sigma.sum()
    rank = (-(p * p.log()).sum()).exp()
    print(
        f"{name:12} squared singular values {[round(s**2, 4) for s in sigma.tolist()]}"
    )
    print(f"{'':12} p = {[round(q, 4) for q in p.tolist()]}, rank {rank:.4f}")

# %% [markdown]
# The squared singular values are the sums of squares of the two columns, because the columns are orthogonal: count
# $3^2 + 3^2 + 1^2 + 1^2 = 20$. Centring takes the common part of the first column away, and the rank falls a little: the
# offset had hidden that the second direction holds most of the differences.
#
# All six, for any table:


# %%
def entropy_rank(sigma, eps=0.0):
    p = sigma / sigma.sum() + eps
    return torch.exp(-torch.special.xlogy(p, p).sum()).item()


def six(z, low=2, high=10):
    n, D = z.shape
    u = F.normalize(z)
    s = (u @ u.T)[~torch.eye(n, dtype=torch.bool)]  # cosines of different rows
    sigma = torch.linalg.svdvals(z - z.mean(0))
    k = torch.arange(low, high + 1, dtype=z.dtype)
    x, y = k.log(), 2 * sigma[low - 1 : high].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return {
        "std": math.sqrt(D) * u.std(0).mean().item(),
        "mean cosine": s.mean().item(),
        # |u - v|^2 = 2 - 2 cos
        "uniformity": (-2 * (2 - 2 * s)).exp().mean().log().item(),
        "centred rank": entropy_rank(sigma),
        "RankMe": entropy_rank(torch.linalg.svdvals(z), 1e-7),
        "alpha": -slope.item(),
    }


# %%
from jepa_lab import metrics

theirs = {
    "std": metrics.normalized_std,
    "mean cosine": metrics.mean_cosine,
    "uniformity": metrics.uniformity,
    "centred rank": metrics.effective_rank,
    "RankMe": metrics.rankme,
    "alpha": lambda z: metrics.alpha_req(z, 2, 10).alpha,
}
for name in ("healthy", "tiny", "offset"):
    ours = six(clouds[name])
    for metric, function in theirs.items():
        value = float(function(clouds[name]))
        assert math.isclose(ours[metric], value, rel_tol=1e-6, abs_tol=1e-9)
print("these are exactly", ", ".join(f.__name__ for f in list(theirs.values())[:5]))
print("and alpha_req of jepa_lab.metrics")

# %% [markdown]
# The package leaves the range of the fit of $\alpha$ open and reports how well the line fits, because the number depends
# on both. Below we keep its default range. Now all clouds:

# %%
theirs["alpha"] = lambda z: metrics.alpha_req(z.float()).alpha
scores = {c: {m: float(f(z)) for m, f in theirs.items()} for c, z in clouds.items()}
print(f"{'':12}" + "".join(f"{metric:>14}" for metric in theirs))
for cloud, row in scores.items():
    cells = (f"{v:.2f}" for v in row.values())
    print(f"{cloud:12}" + "".join(f"{c.replace('-0.00', '0.00'):>14}" for c in cells))

faint = clouds["subspace"] + 0.05 * noise
quarter = noise[:, :16] @ torch.randn(16, 64, generator=g, dtype=torch.float64)
print(f"subspace with faint noise:    centred rank {metrics.effective_rank(faint):.1f}")
print(f"subspace of 16 directions: uniformity {metrics.uniformity(quarter):.2f}")

assert scores["point"]["centred rank"] > 62
assert scores["point"]["std"] < 1e-5 and scores["point"]["RankMe"] < 1.01
assert scores["subspace"]["std"] > 0.8 and scores["subspace"]["centred rank"] < 3
assert abs(scores["subspace"]["mean cosine"]) < 0.05
assert scores["offset"]["RankMe"] < 30 < 60 < scores["offset"]["centred rank"]

# %% [markdown]
# Read it by columns.
#
# - **The centred rank calls the point healthy.** One vector plus noise of a millionth scores as high as the Gaussian, because
#   centring removes the vector and the rank ignores the scale of what is left.
# - **std and mean cosine call the subspace healthy.** Three directions are enough to point everywhere in three dimensions.
# - **RankMe, mean cosine and uniformity raise a false alarm at the offset.** The rows differ as much as ever; what they
#   share hides it. Whether that is harm depends on what comes after: a layer that subtracts the mean does not mind.
# - **alpha** does not tell the point from the Gaussian: both spectra are flat. It judges the shape of a spectrum and nothing else.
# - **Duplicates** look good to the std and the mean cosine, and moderately bad to the ranks. No metric says what is wrong.
#
# Two more traps stand below the table. The ranks count singular values, so that faint noise counts as directions. And
# uniformity saturates: a quarter of the directions is hardly worse than all of them.
#
# No single number will do. `diagnose` weighs several: the spread around the mean row against the length of the rows, the
# rank of the directions that hold 99 % of the variance against the number of *distinct* rows, and the length of the mean
# row. It says why:

# %%
from jepa_lab.metrics import diagnose

verdicts = {name: diagnose(z) for name, z in clouds.items()}
for name, report in verdicts.items():
    print(f"{name}: {report.verdict}")
    print("   ", report.reasons[-1])
assert verdicts["point"].verdict == "complete collapse"
assert verdicts["subspace"].verdict == "dimensional collapse"
assert verdicts["offset"].verdict == "constant offset"
assert verdicts["healthy"].healthy and verdicts["tiny"].healthy
print(next(note for note in verdicts["duplicates"].notes if "distinct" in note))

# %% [markdown]
# The tiny cloud is healthy for `diagnose`, since a scale can be judged only against a reference (`reference_std=`). The
# duplicates pass as well, with a note: whether they are a collapse depends on the inputs, which the function cannot see.
#
# ## Cause each collapse on purpose
#
# Two families, each with its safeguard and without. All four use the small encoder of chapter 01 for 240 steps.
#
# - **JEPA**: predict covered tokens. Safeguard: the targets come from an EMA, so that no gradient reaches them. Removed:
#   targets from the encoder itself, with gradient.
# - **SimSiam** {cite}`chen2021simsiam`: from the embedding of one view predict that of the other, as a cosine. Safeguard:
#   a stop-gradient on the other one. Removed: no stop-gradient.
#
# **Predict before you look.** Without its safeguard each loss can be driven to its minimum without looking at the
# images. Will both end in the same way? A fifth run, VICReg {cite}`bardes2022vicreg`, has terms in its loss against either
# collapse. It serves as the healthy neighbour.

# %%
from jepa_lab.monitor import CollapseMonitor
from jepa_lab.nets import image_encoder
from jepa_lab.objectives import build_objective
from jepa_lab.training import TrainConfig, Trainer


def train(name, epochs=16, **settings):
    seed_all(0)
    if name != "jepa":
        settings["augmentation"] = DIGITS
    model = build_objective(name, image_encoder(data["train"]["image"]), **settings)
    monitor, z = CollapseMonitor(max_rows=512), {}

    def evaluate(objective):
        step = 15 * len(z)  # an epoch has 15 steps
        z[step] = objective.represent(validation)
        monitor(z[step], step=step)
        return {}

    evaluate(model)  # before training
    config = TrainConfig(epochs=epochs, evaluate_every=1)
    trainer = Trainer(model, data["train"], config, evaluate=evaluate)
    loss = trainer.fit()["loss"]
    seconds.append(trainer.core_seconds)
    return {"z": z, "loss": loss, "monitor": monitor, "model": model}


# %% tags=["nbval-ignore-output"]
validation = data["validation"]
seconds, live = [], {}
live["JEPA"] = train("jepa")
live["JEPA, no EMA, no stop-gradient"] = train("jepa", target="none")
live["SimSiam"] = train("simsiam")
live["SimSiam, no stop-gradient"] = train("simsiam", stop_gradient=False)
live["VICReg"] = train("vicreg")
print(f"{sum(seconds):.0f} core-seconds for {len(live)} runs")

# %% [markdown]
# Beside the live runs we draw the **gallery**: seventeen cases, five seeds each, read from `results/`. The band is one
# standard deviation around the mean of its seeds (in the logarithm, for the std).

# %%
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from jepa_lab.experiment import load_result
from jepa_lab.style import COLORS, figure

result = load_result("collapse_gallery")
cases = list(dict.fromkeys(run["case"] for run in result["runs"]))
steps = result["runs"][0]["curves"]["step"]


def stored(case, name="normalized_std"):
    """One row a seed, one column a reading."""
    return np.array([r["curves"][name] for r in result["runs"] if r["case"] == case])


# %%
def draw_case(ax, case, name, tint, label, own=True):
    x = stored(case, name)
    y = np.log(x) if name == "normalized_std" else x
    back = np.exp if name == "normalized_std" else np.asarray
    low, high = (back(y.mean(0) + s * y.std(0, ddof=1)) for s in (-1, 1))
    ax.fill_between(steps, low, high, color=tint, alpha=0.18, linewidth=0)
    ax.plot(steps, back(y.mean(0)), color=tint, linewidth=1, linestyle="dashed")
    if own and case in live:
        ax.plot(steps, live[case]["monitor"].history[name], color=tint, label=label)
    else:
        ax.lines[-1].set(label=label, linestyle="solid", linewidth=1.8)


def log_axis(ax):
    ax.set_yscale("log")
    deep = min(line.get_ydata().min() for line in ax.lines) < 0.01
    subs = (1, 3) if deep else (1, 2, 5)
    ax.yaxis.set(major_locator=LogLocator(subs=subs), major_formatter="{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "Four panels over 240 steps. JEPA: without stop-gradient the std falls from 0.1 to below 0.003 while the centred rank rises from 14 to 19; with its EMA target the std halves and the rank stays near 13. SimSiam: without stop-gradient the std rises from 0.1 to 0.3 while the rank falls from 14 to below 5; with stop-gradient rank and std vary widely between seeds."}}
std, rank = "normalized_std", "effective_rank"
ylabels = {std: "std", rank: "centred rank"}
point, subspace = "JEPA, no EMA, no stop-gradient", "SimSiam, no stop-gradient"
pairs = {"JEPA": ("JEPA", point), "SimSiam": ("SimSiam", subspace)}
fig, axes = figure(2, 2, height=4.6)
for row, (family, names) in zip(axes, pairs.items(), strict=True):
    for ax, (name, ylabel) in zip(row, ylabels.items(), strict=True):
        tints = (COLORS[family], COLORS["no stop-gradient"])
        labels = ("with safeguard", "without")
        for case, tint, label in zip(names, tints, labels, strict=True):
            draw_case(ax, case, name, tint, label)
        ax.set(title=f"{family}: {ylabel}", xlabel="training step")
        if name == "normalized_std":
            log_axis(ax)
        else:
            ax.set_ylim(0, 26)
    row[1].legend(loc="upper left")
fig

# %% [markdown]
# ### Two different collapses
#
# Solid lines are the live runs, dashed lines and bands the five seeds.
#
# - **JEPA without stop-gradient collapses to a point.** The std falls by more than an order of magnitude. The centred
#   rank *rises*: what little is left points in more directions than before training. Read the rank alone, and this is
#   the best run of the figure.
# - **SimSiam without stop-gradient collapses to a subspace.** The rank falls to a third. The std *rises*. Read the std
#   alone, and nothing has happened, or even something good.
#
# The names of the field are *complete* and *dimensional* collapse {cite}`jing2022dimensional`. The reason for the
# difference is in the head. SimSiam's has a BatchNorm, which divides each feature by its own standard deviation over the
# batch: all rows at one point is not a state it can output. So the collapse takes the other way. We test that below.
#
# The runs *with* safeguard are no model of health either, and that is a finding. After 240 steps the JEPA is where
# that of chapter 01 was in its dip: its std has about halved, and stays there. And SimSiam at this size is unstable: its std ends
# anywhere between the two values that the next cell prints. The safeguard keeps both from the end of the road, not from all trouble.
#
# What would have refuted the claim: a seed in which the rank falls at the point, or the std at the subspace.


# %%
def change(case, name):
    """Last reading over first, of each seed and of the live run."""
    x = stored(case, name)
    if case in live:
        h = live[case]["monitor"].history[name]
        x = np.vstack([x[:, [0, -1]], [h[0], h[-1]]])
    return x[:, -1] / x[:, 0]


# five seeds: std at most 0.027 of its start, rank at least 1.14 times
assert change(point, std).max() < 0.05 and change(point, rank).min() > 1.05
# five seeds: rank at most 0.35 of its start, std at least 1.8 times
assert change(subspace, rank).max() < 0.5 and change(subspace, std).min() > 1.3
# five seeds: std 0.33 to 0.54 of its start, rank 0.85 to 0.92
assert change("JEPA", std).min() > 0.2 and change("JEPA", rank).min() > 0.7
ends = stored("SimSiam", std)[:, -1]
assert ends.max() > 5 * ends.min()  # five seeds: a factor of 26
# five seeds: 6.0 or more, at most 5.1 without stop-gradient
assert stored("SimSiam", rank)[:, -1].min() > stored(subspace, rank)[:, -1].max()
for case, run in live.items():  # runs of the gallery, up to rounding
    assert 0.5 < run["monitor"].history[std][-1] / stored(case)[0, -1] < 2
print(f"SimSiam ends with a std from {ends.min():.3f} to {ends.max():.3f}")
print("point: std below 1/20, rank up; subspace: rank below 1/2, std up; in all seeds")

# %% [markdown]
# ## What a probe says about it
#
# The same runs in the final table of the gallery, on test images, with the controls of chapter 01. `linear` is a logistic
# regression on *standardised* features, `knn` a vote of the 20 nearest by cosine. **Predict:** which row has the worst
# accuracy, the point or the subspace?

# %%
from jepa_lab.probes import collect

rows = []
for run in result["runs"]:
    *controls, own = run["rows"]
    rows += [*controls, own | {"method": run["case"]}]
table = sorted(collect(rows), key=lambda row: row["method"] not in plots.CONTROLS)
plots.table(
    table,
    ["linear", "knn", "std", "rank"],
    units={"std": "", "rank": ""},
    digits={"std": 3},
    bold=["linear", "knn"],
)

# %%
scores = {
    row["method"]: {k: np.array(v) for k, v in row.items() if k != "method"}
    for row in table
}
start, end = scores["random init"], scores[point]
print(
    f"std of the point: {end['std'].mean():.4f}, of its random init {start['std'].mean():.4f}"
)
gain = 100 * (end["linear"] - start["linear"])
print(f"linear probe, point minus random init: {gain.mean():+.1f} points", end=" ")
print(f"({gain.min():+.1f} to {gain.max():+.1f})")
gain = 100 * (end["knn"] - start["knn"])
print(f"kNN probe,    point minus random init: {gain.mean():+.1f} points", end=" ")
print(f"({gain.min():+.1f} to {gain.max():+.1f})")
assert abs(end["linear"] - start["linear"]).max() < 0.06  # five seeds: at most 3.5
assert (end["knn"] > start["knn"] + 0.04).all()  # five seeds: at least 9 points
# five seeds: 11 points or more below random init
assert (scores[subspace]["linear"] < start["linear"] - 0.05).all()

# %% [markdown]
# **In the collapse to a point no probe sounds an alarm.** The linear probe standardises first, and thereby blows the point
# up again: on average it is where it was before training. The kNN probe even *improves*. It ranks cosines,
# and ranks do not know how small the differences are. In floating point of 32 bits a point of this size still holds
# an image; in a format of 8 or 16 bits, or with noise, it would not. In the longer run of chapter 01 kNN does
# end below random init, so neither direction is a rule.
#
# **In the collapse to a subspace both probes fall**: what is gone is gone. So never assert health on an accuracy, and
# never on one number. Every case below is asserted on std *and* rank.

# %% [markdown]
# ## Three pictures of four models
#
# Spectrum, similarities and a scatter plot, for an untrained encoder, VICReg and the two collapses. The scatter shows the
# validation images on the unit sphere, in the plane of their first two principal components, all on one scale.


# %%
def plane(z):
    u = F.normalize(z, dim=1)
    left, s, _ = torch.linalg.svd(u - u.mean(0), full_matrices=False)
    return left[:, :2] * s[:2]


def show_plane(ax, z):
    p, labels = plane(z), validation["label"]
    ax.scatter(*p.T, c=labels, cmap="tab10", s=6, linewidths=0)
    ax.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
    ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def show_spectrum(ax, z):
    sigma = metrics.spectrum(F.normalize(z, dim=1)) / len(z) ** 0.5
    ax.plot(range(1, len(sigma) + 1), sigma.clamp_min(1e-8), color=COLORS["JEPA"])
    ax.set(yscale="log", ylim=(1e-7, 2), xlabel="dimension")


# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "Three rows of four panels: untrained, VICReg, point, subspace. Spectra: VICReg lies highest and falls slowly; the point has the shape of the untrained one, far lower; the subspace starts high and falls steeply. Similarities: dark red without structure for untrained and point, varied for VICReg, red with stripes for the subspace. Scatter: a small clump, a wide cloud, a single dot, and an elongated arc."}}
models = {
    "untrained": live["JEPA"]["z"][0],
    "VICReg": live["VICReg"]["z"][240],
    "point": live[point]["z"][240],
    "subspace": live[subspace]["z"][240],
}
fig, axes = figure(3, 4, height=5.6)
for column, (name, z) in zip(axes.T, models.items(), strict=True):
    show_spectrum(column[0], z)
    image = column[1].imshow(cosines(z, 32), cmap="RdBu_r", vmin=-1, vmax=1)
    column[1].set(xlabel="image", xticks=[0, 16, 31], yticks=[0, 16, 31])
    column[1].grid(False)
    show_plane(column[2], z)
    column[2].set(xlabel="first component")
    column[0].set(title=name)
axes[0, 0].set(ylabel="singular value / $\\sqrt{n}$")
axes[1, 0].set(ylabel="image")
axes[2, 0].set(ylabel="second component")
fig.colorbar(image, ax=axes[1, :].tolist(), label="cosine", shrink=0.9)
fig

# %% [markdown]
# The point has kept the *shape* of a good spectrum, far below it; a centred rank sees only the shape. The subspace has
# kept its height and lost the shape. And an untrained network is nearly a point to begin with: its images have
# nearly the same direction, which is why falling *relative to the start* is the sign to look for.
#
# `diagnose` names each live run:

# %% tags=["nbval-ignore-output"]
reports = {"untrained": diagnose(models["untrained"])}
reports |= {case: diagnose(run["z"][240]) for case, run in live.items()}
for name, report in reports.items():
    decisive = -1 if report.verdict != "healthy" else 1
    print(f"{name}: {report.verdict}\n    {report.reasons[decisive]}")

assert reports["VICReg"].healthy
assert reports[point].verdict == "complete collapse"
assert reports[subspace].verdict == "dimensional collapse"
print("diagnose names the healthy run and both collapses")

# %% [markdown]
# The JEPA in its dip and the SimSiam have the verdict of the untrained network: a constant offset. That is what they are,
# no collapse and no success. A verdict describes a table of numbers. Whether a run is on its way up or down needs a second
# reading later.
#
# One report in full. In a notebook it shows as a table, and it draws itself:

# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "The report of the subspace collapse in three panels: a spectrum that falls by orders of magnitude within the first dozen dimensions, a histogram of the standard deviations of the features, and a similarity map with stripes of red and pale cells."}}
from IPython.display import display

display(reports[subspace])
reports[subspace].plot()

# %% [markdown]
# ## Turn the knob: training step
#
# Scrub through the two collapses. Left the images in the plane, right the spectrum. **Predict:** in which does the cloud
# vanish, and in which does it become a line? How many steps does either take?


# %% tags=["nbval-ignore-output"]
from jepa_lab.widgets import explore


def draw(collapse, step):
    z = live[{"point": point, "subspace": subspace}[collapse]]["z"][step]
    fig, [[left, right]] = figure(1, 2, height=2.7, width=5.6)
    show_plane(left, z)
    left.set(title=f"{collapse}, step {step}")
    left.set(xlabel="first component", ylabel="second")
    show_spectrum(right, z)
    s, r = metrics.normalized_std(z).item(), metrics.effective_rank(z).item()
    right.set(title=f"std {s:.3f}, rank {r:.1f}")
    return fig


explore(
    draw,
    collapse=["point", "subspace"],
    step=[0, 15, 30, 45, 60, 90, 120, 180, 240],
    alt="Validation images in the plane and their spectrum",
)

# %% [markdown]
# The point is reached early, and the rest of the run changes nothing that one could see in the plane. The subspace forms
# more slowly: the cloud first stretches, then its small directions drain away one after the other.
#
# ## Remove one part at a time
#
# VICReg has three terms, weighted 25 : 25 : 1. *Invariance* pulls two views together, *variance* keeps the standard
# deviation of each embedding feature above 1, *covariance* makes different features uncorrelated. Chapter 07 builds them;
# here we take them away. **Predict:** without variance, does it become a point? Without covariance?


# %% mystnb={"image": {"alt": "Two panels over 240 steps with bands over five seeds. Std: VICReg and VICReg without head rise to about 0.5 and 0.6, without covariance to 0.2, without variance it stays at 0.1. Centred rank: VICReg rises from 15 to 18, without head and without covariance it ends near 13, without variance it falls to 3."}}
def gallery(names, tints, labels, own=True):
    fig, axes = figure(1, 2, height=3.0)
    for ax, (name, ylabel) in zip(axes.flat, ylabels.items(), strict=True):
        for case, tint, label in zip(names, tints, labels, strict=True):
            draw_case(ax, case, name, tint, label, own)
        ax.set(xlabel="training step", title=ylabel)
    log_axis(axes[0, 0])
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=4 if own else 2)
    return fig


tints = [COLORS["VICReg"], COLORS["no stop-gradient"], COLORS["SimSiam"], COLORS["MAE"]]
ablations = [
    "VICReg",
    "VICReg, no variance",
    "VICReg, no covariance",
    "VICReg, no head",
]
gallery(ablations, tints, ["VICReg", "no variance", "no covariance", "no head"])

# %%
ends = {case: {m: stored(case, m)[:, -1] for m in ylabels} for case in cases}
full, bare = ends["VICReg"], ends["VICReg, no head"]
# five seeds: std at least .35, rank at least 16.9
assert full[std].min() > 0.25 and full[rank].min() > 14
# five seeds: std .79 to 1.9 of its start, rank at most 3.1
assert change("VICReg, no variance", std).min() > 0.5
assert ends["VICReg, no variance"][rank].max() < 5
# five seeds: std at least .88 of its start, rank at most .80 of VICReg's
assert change("VICReg, no covariance", std).min() > 0.6
assert (ends["VICReg, no covariance"][rank] / full[rank]).max() < 0.9
# five seeds: std at least .57, rank at most .83 of VICReg's
assert bare[std].min() > 0.4 and (bare[rank] / full[rank]).max() < 0.93
for case in ablations:
    s, r = (ends[case][m] for m in ylabels)
    print(f"{case:24} std {s.mean():.2f}, rank {r.mean():.1f}")

# %% [markdown]
# - *Without variance* it is a subspace of about three directions, not a point: again the BatchNorm of the head.
# - *Without covariance* the rank is lower than with it in every seed. But it is not a collapse of the same kind. At a
#   weight of 1 against 25 the term sharpens what the others do.
# - *Without a head*, the loss acts on the encoder's own output. Its std is higher, since the variance term asks for
#   exactly that, and **its rank is lower, and so is its kNN accuracy**. The loss wants the two views of an image to coincide.
#   What must be thrown away for that is thrown away in the head, if there is one, and in the encoder otherwise. A
#   rank measured at the head says little about the encoder, and the other way round.
#
# ### Which collapse? Ask the norm of the head
#
# If the BatchNorm is what turns a point into a subspace, then another norm must turn it back. Here is the test: the same two
# runs with a LayerNorm, which standardises each row by itself and lets all rows be equal.

# %% mystnb={"image": {"alt": "Two panels over 240 steps. With BatchNorm in the head both runs keep their std and lose their rank, to 3 and 5; with LayerNorm both keep a rank of 11 to 14 and their std falls to about 0.02."}}
norms = [subspace, "VICReg, no variance"]
norms += [f"{name}, LayerNorm head" for name in norms]
short = [
    "SimSiam, BatchNorm",
    "VICReg, BatchNorm",
    "SimSiam, LayerNorm",
    "VICReg, LayerNorm",
]
tints = [COLORS[k] for k in ("SimSiam", "VICReg", "MAE", "no stop-gradient")]
for name, (high, low) in zip(norms[2:], [(0.4, 0.7), (0.25, 0.6)], strict=True):
    # five seeds: std .18 to .28 and .11 to .16 of its start; rank .85 to .92, .73 to .82
    assert change(name, std).max() < high and change(name, rank).min() > low
    print(f"{name}: std x {change(name, std).mean():.2f}, ", end="")
    print(f"rank x {change(name, rank).mean():.2f}")
gallery(norms, tints, short, own=False)

# %% [markdown]
# The prediction holds in every seed: **a missing safeguard makes a collapse possible, and the norm of the head decides
# which one it is.** A paper's statement that "method X without Y collapses" is incomplete without the kind.
#
# ### JEPA: put something back
#
# The JEPA that collapsed to a point gets neither EMA nor stop-gradient, only one regulariser on its features: VICReg's
# variance and covariance, SIGReg {cite}`balestriero2025lejepa`, or isotropy (chapter 07 explains all three).

# %% mystnb={"image": {"alt": "Two panels over 240 steps. Without a regulariser the std falls to 0.003 and the rank rises to 19. With VICReg, SIGReg or isotropy the std rises to 0.5, 0.7 and 0.3, with isotropy only after a dip, and the rank rises to 26, 23 and 41."}}
held_up = [f"the same + {name}" for name in ("VICReg", "SIGReg", "isotropy")]
tints = [COLORS[k] for k in ("no stop-gradient", "VICReg", "LeJEPA", "MAE")]
# five seeds: std at least .50, .65, .30; rank at least 25, 18.7, 36
margins = [(0.35, 20), (0.45, 15), (0.2, 28)]
for case, (least_std, least_rank) in zip(held_up, margins, strict=True):
    assert ends[case][std].min() > least_std and ends[case][rank].min() > least_rank
# stop-gradient alone; five seeds: std .18 to .39 of its start, rank .73 to 1.03
alone = change("JEPA, no EMA", std)
assert alone.min() > 0.1 and alone.max() < 0.6
assert change("JEPA, no EMA", rank).min() > 0.55
print(
    "each regulariser alone keeps std and rank above the untrained network, in all seeds"
)
for case in held_up:
    print(f"{case:20} linear {100 * scores[case]['linear'].mean():.1f} %", end="")
    print(f"   (random init {100 * start['linear'].mean():.1f} %)")
gallery([point, *held_up], tints, ["none", "VICReg", "SIGReg", "isotropy"])

# %% [markdown]
# All three prevent the collapse, and the highest rank of the whole gallery, isotropy's, comes with a linear probe *below*
# random init. **Health is necessary and not sufficient**: white noise has a perfect rank. With a stop-gradient and no EMA
# the JEPA loses most of its std, and not all: a slow slide, far from the point.
#
# ## Temperatures: a weak effect
#
# NT-Xent needs none of these safeguards; its negatives hold the space open (chapter 04). Extreme temperatures are often
# said to collapse it. Three short live runs: the cosines between embeddings of different validation images.

# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "Three histograms of cosine similarity. At temperature 0.01 all cosines are above 0.7; at 0.2 they form a broad hill from minus 0.8 to 1; at 10 most are near 1, with a long tail down to minus 1."}}
fig, axes = figure(1, 3, height=2.5)
for ax, temperature in zip(axes.flat, (0.01, 0.2, 10.0), strict=True):
    run = train("contrastive", epochs=6, temperature=temperature)
    with torch.no_grad():
        z = run["model"].head(run["z"][90])
    s = cosines(z, 200)[~torch.eye(200, dtype=torch.bool)]
    ax.hist(
        s.numpy(), bins=40, range=(-1, 1), color=COLORS["contrastive"], density=True
    )
    ax.set(title=f"temperature {temperature:g}", xlabel="cosine of two images")
axes[0, 0].set(ylabel="density")

cold, usual, hot = (f"NT-Xent, temperature {t}" for t in ("0.01", "0.2", "10"))
for case in (cold, usual, hot):
    print(
        f"{case:26} std {ends[case][std].mean():.2f}, rank {ends[case][rank].mean():.1f}"
    )
# five seeds: std at least .40, .74, .58; rank at least 24.2, 19.7, 11.3
for case, least_std, least_rank in ((cold, 0.3, 20), (usual, 0.6, 16), (hot, 0.4, 9)):
    assert ends[case][std].min() > least_std and ends[case][rank].min() > least_rank
# in each of five seeds
assert (ends[cold][rank] > ends[usual][rank]).all()
assert (ends[usual][rank] > ends[hot][rank]).all()
fig

# %% [markdown]
# The histograms differ strongly. At 0.01 a picture is content when its partner is a little nearer than the rest, so nothing
# drives the images far apart. At 10 all negatives push alike. But in the gallery
# nothing collapses in 240 steps. The rank falls with the temperature in every seed, by about a factor of two over three orders of
# magnitude, and the hot run ends below its random init in rank: when all negatives push alike, a few directions suffice to be far
# from the average. That is a tendency towards few dimensions, and it is weak beside the cases above.
#
# ## How to read a JEPA loss
#
# The two live JEPAs again, now with their losses.

# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "Two panels over 240 steps on logarithmic axes. Both losses fall; that of the JEPA with its EMA target levels off near 0.02, that of the run without stop-gradient falls to below 0.0001. Its std falls with it, that of the JEPA levels off."}}
fig, axes = figure(1, 2, height=2.8)
for name, case in {"JEPA": "JEPA", "no stop-gradient": point}.items():
    loss = np.array(live[case]["loss"]).reshape(-1, 15).mean(1)
    axes[0, 0].plot(steps[1:], loss, color=COLORS[name], label=name)
    axes[0, 1].plot(steps, live[case]["monitor"].history[std], color=COLORS[name])
for ax, title in zip(axes.flat, ("loss, mean of an epoch", "std"), strict=True):
    log_axis(ax)
    ax.set(title=title, xlabel="training step")
axes[0, 0].legend()
fig

# %% [markdown]
# The better loss belongs to the dead run, by orders of magnitude. A JEPA loss is a distance to targets that move, so it
# has no fixed zero point:
#
# - **It falls for two reasons**: better predictions, or targets that differ less. Only the first is learning.
# - **It rises when the targets spread out.** In chapter 01 the loss passes its minimum, rises more than threefold, and the probe climbs
#   only then: more differences between images have become predictable, and there is more to predict. A rising loss beside
#   a rising std is a run that comes to life.
# - **A sudden drop is an alarm.** A drop with a falling std is a collapse to a point.
# - **Compare it with a predictor that ignores the picture** (chapter 01's exercise), or do not compare it at all. Losses of
#   runs with other targets, norms or momenta are in other units.
#
# `CollapseMonitor` raises the alarm for you: it notes when the std first lies below a fifth of its highest value so far.


# %% tags=["nbval-ignore-output"]
def alarmed(case):
    x = stored(case)
    return int((x < np.maximum.accumulate(x, axis=1) / 5).any(1).sum())


for case in cases:
    own = f", live at {live[case]['monitor'].alarms}" if case in live else ""
    print(f"{case:42} {alarmed(case)} of 5 seeds{own}")
assert live[point]["monitor"].alarms and not live["JEPA"]["monitor"].alarms
assert not live[subspace]["monitor"].alarms
assert alarmed(point) == 5 and alarmed("JEPA") == alarmed("VICReg") == 0
assert alarmed(subspace) == alarmed("VICReg, no variance") == 0

# %% [markdown]
# It fires in every seed of the JEPA without safeguards and in no seed of the JEPA or VICReg. It also fires where SimSiam,
# stop-gradient and all, shrinks: an alarm is a reason to look, not a verdict. A fall by less than a factor of five does
# not reach it. **And it is silent at every collapse to a subspace**, because it watches the std: for those read
# `effective_rank`. In your own loop the monitor is one line a step, `monitor(z, loss=loss)`; with the
# package's trainer, `evaluate=monitor.watch(batch)`. This is what it draws for the run to a point:

# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "Six small panels over the readings of the run that collapses to a point: normalised std and std plunge, mean cosine and mean norm ratio rise to one, RankMe falls to one, the centred rank dips and rises; a dashed line early on marks the alarm."}}
live[point]["monitor"].plot()

# %% [markdown]
# ## Check your understanding
#
# :::{admonition} The centred rank of a run rises steadily from 14 to 19. Good news?
# :class: dropdown
# Unknown. So does that of the run to a point. Ask for the std, against its value at the start.
# :::
#
# :::{admonition} A colleague monitors the std of the L2-normalised features only. Which cases of this chapter does that miss?
# :class: dropdown
# Every collapse to a subspace: SimSiam without stop-gradient, where the std rises, and VICReg without variance, where it
# stays. Add a rank.
# :::
#
# :::{admonition} Why can a SimSiam with BatchNorm in its head not put all rows of a batch at one point in the embedding?
# :class: dropdown
# BatchNorm divides each feature by its standard deviation over the batch, so that every feature inside the head has a standard
# deviation of 1, however small the differences that come in. What it does not prevent is that all features say the same: one
# direction has a standard deviation as well.
# :::
#
# :::{admonition} RankMe of a model is 3 before training. Is it broken?
# :class: dropdown
# It is what the untrained encoder of this chapter has. RankMe is not centred: a large common part counts as one
# direction that dominates. It is meant for comparing runs of one method on one data set {cite}`garrido2023rankme`.
# :::
#
# ```{exercise} Fool a metric
# :label: ex-fool
# Build a table of 512 rows and 64 features with a std near 1 and a mean cosine near 0, which says no more than one bit about
# each row. Then build a healthy one whose mean cosine is far from 0. What does `diagnose` say to both?
# ```
#
# ````{solution} ex-fool
# :class: dropdown
# *One bit*: one vector with a random sign. Each feature jumps between two values, so its standard deviation is large, and the
# cosines are +1 and -1 and cancel. Every rank is 1. *Healthy*: a Gaussian after a ReLU. All features are positive, so
# all rows share a large part, with a mean cosine of about $1/\pi$; the differences are all there. `diagnose` calls it healthy. At the
# first it is undecided, and says why: two distinct rows are too few to judge, and a collapse if the inputs were all different.
# ````

# %% tags=["hide-cell"]
g = torch.Generator().manual_seed(1)
vector = torch.randn(64, generator=g, dtype=torch.float64)
vector = vector.sign()  # so that all features weigh alike
sign = torch.arange(512).remainder(2).double()[:, None] * 2 - 1
batches = {"one bit": sign * vector, "after a ReLU": noise.relu()}
for name, z in batches.items():
    report = diagnose(z)
    print(f"{name:13} std {report.normalized_std:.2f}", end="  ")
    print(
        f"mean cosine {abs(report.mean_cosine):.2f}  rank {report.effective_rank:.1f}",
        end="  ",
    )
    print(report.verdict)
assert diagnose(batches["after a ReLU"]).healthy
assert not diagnose(batches["one bit"]).healthy

# %% [markdown]
# ```{exercise} How much of a point survives?
# :label: ex-round
# The kNN probe liked the point. Store the features of the live runs in 8 bits instead of 32, as a database
# of embeddings may do: divide by the largest absolute value, times 127, and round. Probe again. What do VICReg and the point lose?
# ```
#
# ````{solution} ex-round
# :class: dropdown
# VICReg loses next to nothing. The point falls back to about its random init: the steps of 8 bits are coarser than
# what tells its images apart. Nothing about the images has changed, only the format. That is the harm in a collapse to a
# point, and the reason why its verdict does not depend on the directions of what is left.
# ````

# %% tags=["hide-cell", "nbval-ignore-output"]
from jepa_lab.probes import extract, knn_probe


def eight_bits(x):
    return (x / x.abs().max() * 127).round()


lost = {}
for case in ("VICReg", point):
    a, b = (extract(live[case]["model"], data[s])[0] for s in ("train", "validation"))
    labels = data["train"]["label"], validation["label"]
    accuracy = [
        knn_probe(f(a), labels[0], f(b), labels[1]) for f in (lambda x: x, eight_bits)
    ]
    lost[case] = accuracy[0] - accuracy[1]
    print(f"{case}: kNN {accuracy[0]:.0%} in float32, {accuracy[1]:.0%} in 8 bits")
# four seeds: the point loses 10 points or more, VICReg at most 1
assert lost[point] > 0.05 > abs(lost["VICReg"])

# %% [markdown]
# ## What to remember
#
# - There are two collapses: to a point (std falls, centred rank may rise) and to a subspace (rank falls, std may rise).
#   Watch one number of each kind, against their values at the start.
# - Probes can stay level or improve in a collapse to a point, because they rescale or only rank.
# - Which collapse a missing safeguard leads to depends on the norm of the head.
# - The loss of a JEPA has no fixed zero point. A sudden drop is an alarm; a rise beside a rising std is not.
# - `diagnose(z)` names the state of any table of embeddings and gives its reasons. No collapse does not mean a good representation.
#
# **Where the toy stops being true.** One small encoder, one small data set, 240 steps. Real collapses may come after days, in
# one layer or one head only, and partially. Thresholds that suit 64 features and some hundred images are
# conventions, not constants of nature. With fewer rows than features every rank is limited by the rows. And the SimSiam
# of this chapter is too unstable for a verdict on SimSiam.
#
# ## Scale up
#
# The gallery comes from this command; the cell below prints what it cost. `--trainer.epochs` makes the runs longer.
#
# ```bash
# python -m jepa_lab train --config jepa_lab/configs/collapse_gallery.yaml
# ```

# %% tags=["nbval-ignore-output"]
import time

print(f"collapse_gallery: {result['core_seconds'] / 60:.0f} core-minutes", end=" ")
print(f"for {len(result['runs'])} runs on {result['device']}")
print(f"training in this chapter: {sum(seconds):.0f} s of CPU time")
print(f"this chapter so far: {time.process_time():.0f} s of CPU time")
assert time.process_time() < 180  # twice the budget: this machine may be busy

# %% [markdown]
# ## References
#
# Dimensional collapse and its name: {cite}`jing2022dimensional`; why a predictor with a stop-gradient escapes the
# collapse to a point: {cite}`chen2021simsiam,tian2021dynamics`. The terms that VICReg loses here: {cite}`bardes2022vicreg`, with Barlow
# Twins {cite}`zbontar2021barlow` as their ancestor. Effective rank {cite}`roy2007effective`, RankMe
# {cite}`garrido2023rankme`, alpha-ReQ {cite}`agrawal2022alphareq`, uniformity {cite}`wang2020alignment`; LiDAR
# {cite}`thilak2024lidar`, which `diagnose` adds when it is given two views, measures which directions tell images apart
# rather than views.
