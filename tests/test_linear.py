"""The closed forms against scikit-learn, against brute force, and against each other."""

import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from jepa_lab.linear import cca, covariances, energy, pca, reduced_rank


@pytest.fixture
def pair():
    """Rows whose directions of most variance, of most explained variance and of most correlation are three."""
    g = torch.Generator().manual_seed(0)
    variance = torch.tensor([10.0, 5.0, 0.4, 3.0, 1.0], dtype=torch.float64)
    rho = torch.tensor([0.0, 0.5, 0.95, 0.2, 0.6], dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    shared, first, second = torch.randn(3, 4000, 5, generator=g, dtype=torch.float64)
    x, y = ((rho.sqrt() * shared + (1 - rho).sqrt() * own) * variance.sqrt() for own in (first, second))
    return x @ mix.T + 3, y @ mix.T, mix


def same_rows(a, b):
    """Equal up to the sign of each row."""
    torch.testing.assert_close(a * (a * b).sum(1, keepdim=True).sign(), b, rtol=1e-4, atol=1e-4)


def test_covariances(pair):
    x, y, _ = pair
    joint = torch.cov(torch.cat([x, y], dim=1).T)
    cxx, cxy, cyy = covariances(x, y)
    torch.testing.assert_close(cxx, joint[:5, :5])
    torch.testing.assert_close(cxy, joint[:5, 5:])
    torch.testing.assert_close(cyy, joint[5:, 5:])


def test_pca_is_that_of_scikit_learn(pair):
    x, y, _ = pair
    reference = PCA(3, whiten=True).fit(x.numpy())
    encoder, variances = pca(covariances(x, y)[0], 3)
    torch.testing.assert_close(variances, torch.from_numpy(reference.explained_variance_))
    same_rows(encoder @ (x - x.mean(0)).T, torch.from_numpy(reference.transform(x.numpy())).T)


def test_cca_is_that_of_scikit_learn(pair):
    x, y, _ = pair
    reference = CCA(2, tol=1e-12, max_iter=5000).fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(reference.transform(x.numpy()))
    encoder, correlations = cca(*covariances(x, y), 2)
    same_rows(encoder @ (x - x.mean(0)).T, ((theirs - theirs.mean(0)) / theirs.std(0)).T)
    other, _ = cca(*(c.T for c in reversed(covariances(x, y))), 2)
    for i in range(2):
        found = torch.corrcoef(torch.stack([x @ encoder[i], y @ other[i]]))[0, 1].abs()
        torch.testing.assert_close(found, correlations[i])


def test_reduced_rank_predicts_best(pair):
    """Its error is the least: below that of 2,000 other encoders, and where gradient descent ends."""
    x, y, _ = pair
    x, y = x - x.mean(0), y - y.mean(0)
    cxx, cxy, cyy = covariances(x, y)

    def error(encoder):
        features = x @ encoder.T
        return (y - features @ torch.linalg.lstsq(features, y).solution).square().sum() / (len(x) - 1)

    encoder, explained = reduced_rank(cxx, cxy, 2)
    torch.testing.assert_close(error(encoder), cyy.trace() - explained.sum())
    g = torch.Generator().manual_seed(1)
    others = [error(torch.randn(2, 5, generator=g, dtype=torch.float64)) for _ in range(2000)]
    assert error(encoder) < min(others)
    assert error(encoder) < error(pca(cxx, 2)[0]) - 0.1
    assert error(encoder) < error(cca(cxx, cxy, cyy, 2)[0]) - 0.1


def test_three_rules_keep_three_directions(pair):
    x, y, mix = pair
    c = covariances(x, y)
    for encoder, kept in ((pca(c[0], 1)[0], 0), (reduced_rank(c[0], c[1], 1)[0], 1), (cca(*c, 1)[0], 2)):
        assert energy(encoder @ mix)[kept] > 0.9


def test_copying_is_predicting_oneself(pair):
    x, _, _ = pair
    cxx = covariances(x, x)[0]
    encoder, scores = reduced_rank(cxx, cxx, 3)
    expected, variances = pca(cxx, 3)
    same_rows(encoder, expected)
    torch.testing.assert_close(scores, variances)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_features_are_white(pair, ridge):
    c = covariances(*pair[:2])
    cxx = c[0] + ridge * torch.linalg.eigvalsh(c[0])[-1] * torch.eye(5)
    for encoder in (reduced_rank(c[0], c[1], 3, ridge)[0], cca(*c, 3, ridge)[0]):
        torch.testing.assert_close(encoder @ cxx @ encoder.T, torch.eye(3, dtype=torch.float64))
    encoder = pca(c[0], 3)[0]
    torch.testing.assert_close(encoder @ c[0] @ encoder.T, torch.eye(3, dtype=torch.float64))


def test_cca_ignores_the_size_of_a_direction_and_reduced_rank_does_not(pair):
    x, y, mix = pair
    scale = torch.tensor([0.1, 1, 10, 1, 3], dtype=torch.float64)
    small, large = covariances(x @ mix, y @ mix), covariances(x @ mix * scale, y @ mix * scale)
    torch.testing.assert_close(cca(*small, 5)[1], cca(*large, 5)[1])
    assert not torch.allclose(reduced_rank(*small[:2], 5)[1], reduced_rank(*large[:2], 5)[1], rtol=0.5)


def test_energy():
    g = torch.Generator().manual_seed(0)
    encoder = torch.randn(3, 7, generator=g)
    projector = encoder.T @ torch.linalg.inv(encoder @ encoder.T) @ encoder
    torch.testing.assert_close(energy(encoder), projector.diagonal())
    mixed = torch.randn(3, 3, generator=g) @ encoder  # the same features, mixed
    torch.testing.assert_close(energy(mixed), energy(encoder), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(energy(5 * torch.eye(7)[[2, 4]]), torch.eye(7)[[2, 4]].sum(0))


def test_a_singular_covariance_needs_a_ridge():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x[:, :1]], dim=1)
    c = covariances(x, x)
    with pytest.raises(ValueError, match="cxx is singular"):
        reduced_rank(*c[:2], 2)
    with pytest.raises(ValueError, match="is singular"):
        cca(*c, 2)
    assert cca(*c, 2, ridge=1e-3)[0].isfinite().all()


def test_what_is_refused(pair):
    c = covariances(*pair[:2])
    # __wrapped__: without the run-time check of the shapes, which readers do not have
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"k must lie in 1\.\.5"):
            pca(c[0], k)
    with pytest.raises(ValueError, match="positive eigenvalues"):
        pca(torch.zeros(3, 3), 1)
    with pytest.raises(ValueError, match="same number of rows"):
        covariances.__wrapped__(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="cxx must be"):
        reduced_rank.__wrapped__(c[0], torch.zeros(4, 5), 2)
    with pytest.raises(ValueError, match="cyy must be"):
        cca.__wrapped__(c[0], c[1], torch.eye(4), 2)
    with pytest.raises(ValueError, match="ridge must be"):
        reduced_rank(*c[:2], 2, ridge=-1.0)
    for encoder in (torch.ones(2, 5), torch.randn(6, 5)):
        with pytest.raises(ValueError, match="independent rows"):
            energy(encoder)
