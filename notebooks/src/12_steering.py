# %% [markdown]
# # Steering
#
# **Claim.** A question and a hint about *where* to look find more than the question alone. How to combine the two can be learned in
# seconds, and what is learned is soft: a wrong hint costs a little, where a filter with the wrong topic finds nothing.

# %% [markdown]
# :::{admonition} At a glance
# :class: tip
# - **Goals**: compute a rank, recall@k and MRR by hand; build a steering vector that does not give the answer away; write InfoNCE
#   with hard negatives; read a table of a search without being fooled; cause a collapse that recall hardly notices; decide between a
#   hint and a filter.
# - **Prerequisites**: [Contrastive learning](04_contrastive), [Target encoders](05_target_encoders) and
#   [VICReg](07_vicreg_and_sigreg). Terms are in the [glossary](../book/glossary.md).
# - **Cost**: about a minute of CPU time on one thread, under 1 GB of memory; ten seconds more the first time, when the texts are
#   collected. The last cell prints what it measured.
# - **Seeds**: live runs use split 0 and seed 0. Tables hold five splits of the data, each with a model of its own.
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
# So far an encoder predicted one part of a picture from another. Now the two parts are texts, and the prediction is put to use: **search**. Somebody
# asks; somewhere in a pile of texts lies the one that answers. The text that is asked with is the *question*, the one that answers
# is its *source*.
#
# Where do we find thousands of such pairs without the network? In the packages that are installed beside this book. A docstring begins with a
# line that says what a function does, and goes on with the details. The first line is our question, the rest its source. The
# **topic** of a pair is the subpackage that it comes from.

# %%
from textwrap import shorten

from jepa_lab.data.text import docstring_pairs

pairs = docstring_pairs()
print(f"{len(pairs)} pairs in {len(pairs.topics)} topics; three of them, drawn:")
for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:3]:
    print(f"\n{pairs.topic[i]}, {pairs.name[i]}")
    print("  question:", pairs.question[i])
    print("  source:  ", shorten(pairs.source[i], 140, placeholder=" ..."))

# %% mystnb={"image": {"alt": "Horizontal bars, one for each package, with the number of its pairs: torch and scipy have about a thousand each, sklearn somewhat fewer, then numpy, matplotlib and networkx, down to fewer than a hundred for fsspec, PIL and ipywidgets. The number of topics is written at the end of each bar."}}
from collections import Counter

from jepa_lab import style

size = Counter(topic.split(".")[0] for topic in pairs.topic)
topics_in = Counter(topic.split(".")[0] for topic in pairs.topics)
order = [name for name, _ in size.most_common()][::-1]
fig, [[ax]] = style.figure(height=3.0)
ax.barh(order, [size[name] for name in order], color=plots.COLORS["raw input"])
for place, name in enumerate(order):
    many = f"{topics_in[name]} topic{'s' if topics_in[name] > 1 else ''}"
    ax.annotate(many, (size[name], place), (5, 0), textcoords="offset points", va="center")
ax.set(xlabel="pairs", xlim=(0, 1.15 * max(size.values())))
ax.grid(axis="y", visible=False)
fig

# %% [markdown]
# ### From text to vector
#
# The search needs numbers. Count the words of a text, and give each a weight: high when the text repeats it, low when
# every text has it. That is **TF-IDF**, term frequency times inverse document frequency {cite}`salton1988weighting`. A word that
# stands $c > 0$ times in a text, and in $m$ of $n$ texts, gets
#
# ```{math}
# :label: eq-tfidf
# t = (1 + \ln c)\,\Big(1 + \ln \frac{1 + n}{1 + m}\Big) ,
# ```
#
# and the vector of all words is brought to length 1. By hand, on three texts:

# %%
from math import log

from jepa_lab.data.text_encoders import TfidfEncoder

texts = ["sort an array", "sort a list", "copy an array to an array"]
encoder = TfidfEncoder().fit(texts)
words = encoder.vectorizer.get_feature_names_out().tolist()
by_hand = torch.zeros(3, len(words), dtype=torch.float64)
for row_, text in enumerate(texts):
    for column, word in enumerate(words):
        c, m = text.split().count(word), sum(word in t.split() for t in texts)
        if c:
            by_hand[row_, column] = (1 + log(c)) * (1 + log((1 + 3) / (1 + m)))
by_hand /= by_hand.norm(dim=1, keepdim=True)
packaged = torch.from_numpy(encoder.encode(texts).toarray()).double()
torch.testing.assert_close(packaged, by_hand, rtol=1e-5, atol=1e-6)
print("   ", *(f"{word:>6}" for word in words))
for number, values in enumerate(by_hand):
    print(f"{number}   ", *(f"{value:6.2f}" for value in values))
print("this is exactly jepa_lab.data.text_encoders.TfidfEncoder")

# %% [markdown]
# Such a vector has thousands of columns, and texts without a common word have nothing in common. **Latent semantic analysis**, LSA,
# squeezes it {cite}`deerwester1990lsa`: of all TF-IDF vectors of the training texts take the singular value
# decomposition, and keep the directions in which the texts vary most. Words that keep the same company then point the same way. Ours
# keeps 256 directions and scales the result to length 1.
#
# LSA is the **encoder** of this chapter. It is fitted before anything else happens, on the training texts alone, and never trained further.
# All settings come from the file that made the tables below, so that the live runs are rows of these tables.

# %%
from jepa_lab.config import build, parse
from jepa_lab.data.text import training_texts
from jepa_lab.data.text_encoders import LsaEncoder
from jepa_lab.families.text import load_task

CONFIG = ["--config", "../jepa_lab/configs/jasper_base.yaml"]
recipe = build(parse(CONFIG))
task = load_task(recipe.data, seed=0)  # split 0; all that a search needs
question, source, test = task.question, task.source, task.parts["test"]
print({part: len(rows) for part, rows in task.parts.items()}, tuple(question.shape))

lsa = LsaEncoder(recipe.data.dim).fit(training_texts(pairs, task.parts["train"]))
torch.testing.assert_close(lsa.encode(pairs.question[:9]), question[:9])
vocabulary = lsa.tfidf.vectorizer.get_feature_names_out()
directions = torch.from_numpy(lsa.svd.components_.T).float()
often = directions.norm(dim=1).topk(1500).indices  # words that the 256 hold well
for word in ("matrix", "graph", "device"):
    nearest = torch.cosine_similarity(lsa.encode([word]), directions[often])
    print(f"{word:7} is near", *vocabulary[often[nearest.topk(6).indices[1:]]])

# %% [markdown]
# ### The search, in a picture
#
# Nearness is the **cosine** of two vectors: of unit vectors, their dot product. To search is to sort all sources by their cosine with the question.
#
# Below is one question of the test split: of those that a hint brings to the first place, the one that was furthest down without it. The
# best case, then; the worst comes soon. The search without a hint:

# %%
from jepa_lab.ranking import ranks

place = torch.arange(len(pairs))  # all bodies differ: source i answers question i
ambiguous = test[task.ambiguous[test]]  # the name occurs in two topics or more
before = ranks(question[ambiguous] @ source.T, place[ambiguous])
hinted = question[ambiguous] + task.own_centroid[ambiguous]  # + the mean of its topic
after = ranks(hinted @ source.T, place[ambiguous])
most = (before * (after == 1)).argmax()
shown, rank = int(ambiguous[most]), before[most]
first = (source @ question[shown]).topk(5).indices.tolist()
print(f"question: {pairs.question[shown]} ({pairs.topic[shown]}, {pairs.name[shown]})")
for number, i in enumerate(first, 1):
    print(f"{number:6}. {pairs.topic[i]}, {pairs.name[i]}: {pairs.question[i]}")
print(f"{rank:6.0f}. {pairs.topic[shown]}, {pairs.name[shown]}: its source")

# %% [markdown]
# The first answers share words with the question, and come from elsewhere. Now all sources at once. To the right: more similar to the
# question. Upwards: more similar to the mean source of the question's topic. **Predict**: where is the right one?

# %% mystnb={"image": {"alt": "All sources as dots. The horizontal axis is the cosine with the question, the vertical one the cosine with the mean of its topic. The five dots furthest to the right lie low. The dots of the topic lie high, and the right source is among them, in the middle from left to right; a slanted dashed line through it leaves few dots on its upper right."}}
x, y = source @ question[shown], source @ task.own_centroid[shown]
same = torch.tensor([topic == pairs.topic[shown] for topic in pairs.topic])
fig, [[ax]] = style.figure(height=3.8)
ax.plot(x[~same], y[~same], ".", color="#BBBBBB", label="other topics", markersize=3)
ax.plot(x[same], y[same], "o", color=plots.COLORS["JEPA"], label="its topic", ms=4)
ax.plot(x[first], y[first], "x", color="black", label="first five", markersize=8)
ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 2}
ax.plot(x[shown], y[shown], "o", color=plots.COLORS["contrastive"], label="right", **ring)
line = {"color": plots.COLORS["contrastive"], "linewidth": 1}
ax.axvline(x[shown], linestyle="dotted", label="sorted by question", **line)
ax.axline((x[shown], y[shown]), slope=-1, linestyle="dashed", label="by both", **line)
ax.set(xlabel="cosine with the question", ylabel="cosine with the topic's mean")
fig.legend(loc="outside right center")
fig

# %% [markdown]
# Many sources lie to the right of the right one: as similar in words, from other places. Knowing the topic, one sorts along both axes.
# Everything that follows is about how to do that well, without a picture, and with topics that may be wrong.
#
# ### Ranks
#
# The **rank** of the right source is its place in the sorted list, 1 for the first. Over many questions:
#
# - **recall@k**: the share of questions whose right source is among the first $k$;
# - **MRR**, mean reciprocal rank: the mean of $1 / \text{rank}$. It rewards the second place with a half.
#
# One detail decides whether these numbers can be trusted. What if sources *tie*? With $b$ better ones and $e$ equal ones, itself included,
#
# ```{math}
# :label: eq-rank
# \text{rank} = 1 + b + \frac{e - 1}{2} ,
# ```
#
# the mean of the places that they share. Three questions with four sources each; in the last row all scores are equal:

# %%
from jepa_lab.ranking import mean_reciprocal_rank, recall_at

scores = torch.tensor([[0.9, 0.2, 0.4, 0.1], [0.3, 0.5, 0.5, 0.2], [0.2] * 4])
answer = torch.tensor([0, 2, 1])  # the column of the right source
own = scores[torch.arange(3), answer][:, None]
better, equal = (scores > own).sum(1), (scores == own).sum(1)
rank = 1 + better + (equal - 1) / 2
torch.testing.assert_close(ranks(scores, answer), rank)
print("ranks", rank.tolist(), "- exactly jepa_lab.ranking.ranks")
for name, r in {"best place": 1.0 + better, "shared": rank}.items():
    print(f"ties at their {name}: recall@1 {recall_at(r, 1):.3f}", end=", ")
    print(f"MRR {mean_reciprocal_rank(r):.3f}")

# %% [markdown]
# A model that answers the same to everything would have a perfect recall@1 if ties counted at their best. Shared, it has
# what guessing has.
#
# What does plain cosine reach on the test questions? There are two **pools** to search: the sources of the test *part*, and *all*
# sources. The second is harder and says more.

# %%
from jepa_lab.search import POOLS, by_cosine, control_rows, row

METRICS = ["recall@1", "recall@10", "mrr"]
both = [name + suffix for suffix in ("", " all") for name in METRICS[1:]]
units = {"mrr": "", "mrr all": "", "std": "", "cosine": ""}
look = {"units": units, "digits": {"mrr": 3, "mrr all": 3}, "bold": []}
plain = row(task, "cosine", "test", dict.fromkeys(POOLS, by_cosine(question[test], source)))
sizes = {pool: len(task.pool(pool, "test")) for pool in POOLS}
print("sources in the pools:", sizes)
plots.table([plain], both, caption="Split 0.", **look)

# %% [markdown]
# ## When a name is ambiguous
#
# Programmers reuse names. How many names of our pairs stand in two topics or more? And what happens if one searches by the
# *name* alone, split into words, as one would type it?
#
# The simplest way to use a hint: add the topic's mean to the question, at full length. For every held-out pair with an
# ambiguous name we search all sources three times: without a hint, with its own topic, and with another topic that has the name
# too. **Predict** the order of the three.

# %%
from jepa_lab.data.text_encoders import name_to_words

topics_of = {}
for name, topic in zip(pairs.name, pairs.topic, strict=True):
    topics_of.setdefault(name, set()).add(topic)
shared = [name for name, topics in topics_of.items() if len(topics) > 1]
number = {topic: i for i, topic in enumerate(pairs.topics)}
held_out = ambiguous.tolist()
others = [sorted(topics_of[pairs.name[i]] - {pairs.topic[i]})[0] for i in held_out]
typed = lsa.encode([name_to_words(pairs.name[i]) for i in held_out])
hints = {
    "no hint": torch.zeros_like(typed),
    "right topic": task.own_centroid[ambiguous],
    "other topic": task.centroids[[number[topic] for topic in others]],
}
found = {name: ranks((typed + c) @ source.T, ambiguous) for name, c in hints.items()}
print(f"{len(shared)} of {len(topics_of)} names; {len(held_out)} held-out pairs")
for name, rank in found.items():
    print(f"{name:12} median rank {rank.median():.0f}, recall@10 {recall_at(rank, 10):.2f}")

# %% tags=["nbval-ignore-output"]
gain = found["no hint"] / found["right topic"]
share = [(gain > 1).float().mean().item(), (gain < 1).float().mean().item()]
print(f"the right topic helps {share[0]:.0%} and hurts {share[1]:.0%} of them\n")
order = gain.argsort(descending=True).tolist()
chosen = dict.fromkeys([pairs.name[held_out[k]] for k in order])  # a name once
best = [next(k for k in order if pairs.name[held_out[k]] == name) for name in chosen]
print(f"{'name and topic':38} {'no hint':>8} {'right':>6} {'other':>6}  other topic")
for k in [*best[:7], order[-1]]:
    i = held_out[k]
    values = " ".join(f"{found[name][k]:7.0f}" for name in found)
    print(f"{pairs.name[i] + ', ' + pairs.topic[i]:36} {values}  {others[k]}")

# %%
# twelve ranks of twenty would be luck; over splits 0 to 4 the medians were far apart
medians = {name: rank.median().item() for name, rank in found.items()}
assert medians["right topic"] < 0.6 * medians["no hint"]
assert medians["right topic"] < 0.6 * medians["other topic"]
assert share[0] > 2 * share[1]
print("the right topic helps more often than it hurts, and by more")

# %% [markdown]
# The first rows are the best cases and the last is the worst; the rule is in the cell. The right topic moves most sources up, and not
# all of them: a mean is a crude hint, and a source that is untypical of its topic is moved away from.
#
# Try it. Change the name and run the cell: any words, such as `"null space"` or `"convolve"`. Set `where` to any topics.

# %% tags=["nbval-ignore-output"]
typed_name = pairs.name[held_out[order[0]]]  # change me
where = sorted(topics_of.get(typed_name, pairs.topics[:2]))[:3]

query = lsa.encode([name_to_words(typed_name)])[0]
for topic in [None, *where]:
    z = query if topic is None else query + task.centroids[number[topic]]
    answers = (source @ z).topk(3).indices.tolist()
    print(f"{name_to_words(typed_name)!r}, {topic or 'no hint'}:")
    for i in answers:
        print(f"    {pairs.topic[i]}, {pairs.name[i]}: {shorten(pairs.question[i], 56)}")
