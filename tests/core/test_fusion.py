import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import cdist
from sklearn.cross_decomposition import CCA

from scfm.errors import InputError
from scfm.fusion import CanonicalCorrelation, concatenated, weighted_neighbours


def views(n: int = 90, noise: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Two views of cells in three groups."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 3)) + 3 * rng.integers(0, 3, n)[:, None]
    return {
        "rna": hidden @ rng.normal(size=(3, 6)) + noise * rng.normal(size=(n, 6)),
        "atac": hidden @ rng.normal(size=(3, 4)) + noise * rng.normal(size=(n, 4)),
    }


def test_concatenated_views_weigh_the_same_whatever_their_unit():
    both = views()
    z = concatenated({"rna": both["rna"] * 1000 + 5, "atac": both["atac"]})
    assert z.shape == (90, 10)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose([z[:, :6].var(axis=0).sum(), z[:, 6:].var(axis=0).sum()], 1, rtol=1e-5)
    np.testing.assert_allclose(z, concatenated(both), atol=1e-4)
    assert (concatenated({"rna": both["rna"], "atac": np.ones((90, 2))})[:, 6:] == 0).all()


def test_canonical_correlations_solve_the_generalised_eigenvalue_problem():
    x, y = views(400).values()
    found = CanonicalCorrelation.fit(x, y, ridge=0)
    joint = np.cov(x.T, y.T)
    xx, yy, xy = joint[:6, :6], joint[6:, 6:], joint[:6, 6:]
    squared = linalg.eigh(xy @ np.linalg.solve(yy, xy.T), xx, eigvals_only=True)[::-1][:4]
    np.testing.assert_allclose(found.correlations, np.sqrt(squared), rtol=1e-6)
    u, v = found.transform(x, y)
    np.testing.assert_allclose(np.cov(u.T), np.eye(4), atol=1e-4)
    np.testing.assert_allclose([np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(4)], found.correlations, rtol=1e-4)
    a, _ = CCA(2, scale=False, max_iter=5000, tol=1e-12).fit(x, y).transform(x, y)
    for i in range(2):
        assert abs(np.corrcoef(a[:, i], u[:, i])[0, 1]) > 0.9999


def test_cca_with_ridge_stands_columns_that_repeat():
    x, y = views().values()
    found = CanonicalCorrelation.fit(np.hstack([x, x, np.zeros((90, 1))]), y, components=3)
    assert found.correlations.shape == (3,)
    assert all(np.isfinite(z).all() for z in found.transform(np.hstack([x, x, np.zeros((90, 1))]), y))


def by_the_paper(
    both: dict[str, np.ndarray], k: int, sigma_cells: int
) -> tuple[np.ndarray, list[list[tuple[float, int]]]]:
    """Weights, and all cells by affinity, one cell after another."""
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in both.values()]
    n, distance = len(unit[0]), [cdist(z, z) for z in unit]
    near = [[[j for j in np.argsort(row) if j != i][:k] for i, row in enumerate(d)] for d in distance]
    sets = [[{i, *row} for i, row in enumerate(of)] for of in near]

    def theta(m: int, i: int, d: float) -> float:
        nearest = distance[m][i][near[m][i][0]]
        meeting = []
        for j in range(n):
            jaccard = len(sets[m][i] & sets[m][j]) / len(sets[m][i] | sets[m][j])
            if j != i and jaccard > 0:
                meeting.append((jaccard, -distance[m][i][j]))
        sigma = -np.mean([d for _, d in sorted(meeting)[:sigma_cells]])
        return float(np.exp(-max(d - nearest, 0) / (sigma - nearest)))

    weights, ordered = np.empty((n, 2)), []
    for i in range(n):
        score = []
        for m in (0, 1):
            own, other = (np.linalg.norm(unit[m][i] - unit[m][near[by][i]].mean(axis=0)) for by in (m, 1 - m))
            score.append(min(theta(m, i, own) / (theta(m, i, other) + 1e-4), 200))
        weights[i] = np.exp(score) / np.exp(score).sum()
        joint = [(sum(weights[i][m] * theta(m, i, distance[m][i][j]) for m in (0, 1)), j) for j in range(n) if j != i]
        ordered.append(sorted(joint, key=lambda pair: (-pair[0], pair[1])))
    return weights, ordered


def test_weighted_neighbours_equal_the_paper_cell_by_cell():
    both = views(60)
    found = weighted_neighbours(both, k=8, sigma_cells=6)
    weights, ordered = by_the_paper(both, 8, 6)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)
    for i in range(60):
        assert found.neighbours[i].tolist() == [j for _, j in ordered[i][:8]]
        np.testing.assert_allclose(found.affinities[i], [a for a, _ in ordered[i][:8]], rtol=1e-6)
    graph = found.graph
    assert (graph != graph.T).nnz == 0
    assert graph[0, found.neighbours[0, 0]] >= found.affinities[0, 0]


def test_joint_neighbours_come_from_the_nearest_of_each_view_only():
    both = views(200)
    few = weighted_neighbours(both, k=5, candidates=10)
    distance = [
        cdist(z / np.linalg.norm(z, axis=1)[:, None], z / np.linalg.norm(z, axis=1)[:, None]) for z in both.values()
    ]
    for i in range(0, 200, 20):
        assert set(few.neighbours[i]) <= {j for d in distance for j in np.argsort(d[i])[1:11]}
        assert len(set(few.neighbours[i])) == 5


def test_a_view_of_noise_weighs_less():
    both = views(300, noise=0.3)
    noise = np.random.default_rng(5).normal(size=(300, 8))
    found = weighted_neighbours({"rna": both["rna"], "noise": noise})
    assert found.modalities == ("rna", "noise")
    assert found.weights[:, 0].mean() > 0.6
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)


def test_cells_that_are_equal_do_not_break_the_weights():
    both = {name: np.repeat(z, 30, axis=0)[:90] for name, z in views().items()}
    found = weighted_neighbours(both, k=10)
    assert np.isfinite(found.weights).all()
    assert np.isfinite(found.affinities).all()


@pytest.mark.parametrize("cross", ["mean", "max"])
def test_three_views_have_three_weights(cross):
    both = views()
    found = weighted_neighbours({**both, "protein": both["rna"][:, :3]}, k=10, cross=cross)
    assert found.weights.shape == (90, 3)


def test_views_that_cannot_be_joined_are_refused():
    both = views()
    with pytest.raises(InputError, match=r"\{'rna': 90, 'atac': 80\} cells"):
        concatenated({"rna": both["rna"], "atac": both["atac"][:80]})
    with pytest.raises(InputError, match="at least 92 cells"):
        weighted_neighbours(both, k=90)
    both["atac"][4, 0] = np.nan
    with pytest.raises(InputError, match="1 cells have NaN embeddings in 'atac'"):
        concatenated(both)
    with pytest.raises(InputError, match="cross='sum' is not known"):
        weighted_neighbours(views(), cross="sum")
