"""Several processes: two give what one gives, and one pays nothing for it."""

import contextlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from jepa_lab import distributed
from jepa_lab.data.augment import augment
from jepa_lab.nets import MLP
from jepa_lab.objectives import OBJECTIVES
from tests import distributed_cases
from tests.distributed_cases import CHANGES, WORLD, cases, rows, train


@pytest.fixture
def no_exchange(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("one process has nobody to talk to")

    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)


def test_one_process_exchanges_nothing_and_copies_nothing(no_exchange):
    z, mean = torch.randn(5, 3, requires_grad=True), torch.tensor(2.0)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.gather(z) is z and distributed.all_sum(z) is z and distributed.own(z, 5) is z
    assert distributed.global_mean(mean, 7) is mean
    where = torch.tensor([True, False, True, True, False])
    assert torch.equal(distributed.gather(z, where), z[where])
    index, total = distributed.positions(5, z)
    assert index.tolist() == [0, 1, 2, 3, 4] and total == 5


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_one_process_is_torchs_to_the_bit(no_exchange, training):
    ours, theirs = distributed.BatchNorm(3).train(training), nn.BatchNorm1d(3).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(3):
        x = torch.randn(9, 3)
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_heads_have_the_batch_norm_of_all_processes():
    assert any(isinstance(part, distributed.BatchNorm) for part in MLP(3, 4, 2, norm="batch"))


@pytest.mark.parametrize("counts", [(3, 3), (4, 3, 3), (2, 5), (0, 2, 1), (6, 0)])
def test_rows_of_all_ranks_have_the_order_of_the_global_batch(monkeypatch, counts):
    """The oracle sorts: row i of every rank before row i + 1 of any."""
    places = sorted((row, rank) for rank, n in enumerate(counts) for row in range(n))
    width = torch.full((len(counts),), 8)
    monkeypatch.setattr(distributed, "world_size", lambda: len(counts))
    monkeypatch.setattr(distributed, "all_sum", lambda mine: torch.stack([torch.tensor(counts), width], dim=1))
    for rank, n in enumerate(counts):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        index, total = distributed.positions(n, width, 8)
        assert total == sum(counts)
        assert index.tolist() == [places.index((row, rank)) for row in range(n)]
    width[-1] = 9
    with pytest.raises(ValueError, match="same number of values on every rank"):
        distributed.positions(counts[0], width, 8)


def test_a_share_of_a_batch_is_augmented_as_the_whole_batch_would():
    images = torch.rand(7, 1, 8, 8)
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    whole = augment(images, CHANGES, one)
    index = torch.tensor([1, 4, 6])
    assert torch.equal(augment(images[index], CHANGES, other, (index, 7)), whole[index])
    assert torch.equal(one.get_state(), other.get_state())  # and the generators stay in step


def test_every_objective_is_compared():
    assert {name.split()[0] for name in cases()} == set(OBJECTIVES)


# ------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes saw in all cases; they run once, together."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.distributed_cases"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, str(rank), str(folder)], **pipes) for rank in range(WORLD)]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_give_losses_gradients_and_weights_of_one(ranks, one_thread):
    """Every objective in float64, with random masks and augmentations; one test, since the two processes run once.

    Measured over all 72 cases: losses and metrics within 7e-14 of their size, weights within 7e-12, gradients within
    4e-11 (of a thousandth of the step's largest, for those that are zero but for rounding).
    With any one exchange left out, some number of some case is off by 0.01 of its size or more.
    """
    wrong, compared = [], 0
    for name, build in cases().items():
        one = train(*build())
        largest = {}  # of all gradients of a step, of all weights: some tensors are zero but for rounding
        for key, value in one.items():
            kind = key.rpartition(" ")[0]
            largest[kind] = max(largest.get(kind, 0.0), float(value.abs().max()))
        for rank, seen in enumerate(ranks):
            two = seen[name]
            assert set(two) == set(one), name
            for key, value in one.items():
                compared += 1
                scale = max(float(value.abs().max()), 1e-3 * largest[key.rpartition(" ")[0]])
                if not float((two[key] - value).abs().max()) <= 1e-9 * scale:
                    wrong.append(f"{name}, rank {rank}: {key}")
    assert compared > 10_000
    assert not wrong, f"{len(wrong)} differ: " + "\n".join(wrong[:20])


@pytest.mark.slow
def test_exchanges_carry_the_gradient_of_every_ranks_loss(ranks):
    zero, one = (seen["parts"] for seen in ranks)
    a, b = torch.arange(8.0).view(4, 2), torch.arange(4.0).view(2, 2) + 100
    expected = {(4, 2): torch.stack([a[0], b[0], a[1], b[1], a[2], a[3]]), (0, 3): torch.arange(6.0).view(3, 2) + 100}
    order = {(4, 2): ([0, 2, 4, 5], [1, 3]), (0, 3): ([], [0, 1, 2])}
    for n, whole in expected.items():
        factor = torch.arange(whole.numel()).view_as(whole)
        for seen, mine in zip((zero, one), order[n], strict=True):
            assert torch.equal(seen[f"gather {n}"], whole.double())
            assert torch.equal(seen[f"own {n}"], whole[mine].double())
            # The losses of the ranks have the weights 1 and 2.
            assert torch.equal(seen[f"gather {n} gradient"], 3.0 * factor[mine].double())
            torch.testing.assert_close(seen[f"mean {n}"], whole.mean().double())
            torch.testing.assert_close(seen[f"mean {n} gradient"], torch.tensor(3.0 * len(mine) / sum(n)).double())


@pytest.mark.slow
def test_batch_norm_of_two_processes_is_that_of_all_their_rows(ranks):
    norm, x = nn.BatchNorm1d(3).double(), rows(7).requires_grad_()
    y = norm(x)
    (y * rows(7).cos()).sum().backward()
    for rank, seen in enumerate(seen["parts"] for seen in ranks):
        torch.testing.assert_close(seen["norm"], y.detach()[rank::WORLD], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(seen["norm gradient"], x.grad[rank::WORLD], rtol=1e-12, atol=1e-12)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(seen[f"norm {name}"], value, rtol=1e-12, atol=1e-12)
    total = sum(seen["parts"]["norm weight gradient"] for seen in ranks)
    torch.testing.assert_close(total, norm.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_fused_losses_of_two_processes_are_those_of_one(ranks, one_thread):
    for name, loss in distributed_cases.fused().items():
        views = [view.clone().requires_grad_() for view in (rows(7), rows(7).cos())]
        value = loss(*views)
        value.backward()
        for rank, seen in enumerate(seen["parts"] for seen in ranks):
            torch.testing.assert_close(seen[f"fused {name}"], value.detach(), rtol=1e-11, atol=1e-11)
            # Both ranks have the whole loss, and their gradients of a row add up: see `distributed`.
            mine = WORLD * torch.stack([view.grad[rank::WORLD] for view in views])
            torch.testing.assert_close(seen[f"fused {name} gradient"], mine, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_rows_of_another_size_are_refused_on_every_rank(ranks):
    for seen in ranks:
        assert "got [3, 4] on ranks 0, 1" in bytes(seen["parts"]["refused"].tolist()).decode()


@pytest.mark.slow
def test_one_rank_may_act_alone(ranks):
    assert torch.equal(ranks[0]["parts"]["alone"], rows(3)) and "alone" not in ranks[1]["parts"]


def test_alone_ends_where_it_ends(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with contextlib.suppress(KeyError), distributed.alone():
        with distributed.alone():
            assert distributed.world_size() == 1
        assert distributed.world_size() == 1
        raise KeyError
    assert distributed.world_size() == 4


@pytest.mark.slow
def test_the_ranks_differ_in_tokens_and_in_rows(ranks):
    """What the comparison is worth: it has ranks with unequal shares, and a rank that loses rows."""
    _, batches = cases()["supervised sequences"]()
    usable = batches[0]["valid"].sum(1)
    assert usable[0::WORLD].sum() != usable[1::WORLD].sum()
    assert (usable[0::WORLD] >= 2).sum() != (usable[1::WORLD] >= 2).sum()
    assert distributed_cases.images(7)[0]["image"][0::WORLD].shape[0] == 4
