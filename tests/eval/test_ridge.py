"""Closed-form ridge regression against scikit-free arithmetic."""

import numpy as np
import pytest

from d2v_plugin.eval.ridge import fit_ridge, r2_score


def problem(noise, rows=200, width=6, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, width)) * [1, 10, 0.1, 1, 1, 1] + 5
    weights = generator.standard_normal((width, 3))
    return x, x @ weights + 2 + noise * generator.standard_normal((rows, 3)), np.arange(rows) // 10


def test_recovers_a_linear_map():
    x, y, groups = problem(0.0)
    fit = fit_ridge(x, y, groups)
    np.testing.assert_allclose(fit.predict(x), y, atol=1e-3)
    assert r2_score(y, fit.predict(x)) > 0.999999


def test_solves_the_normal_equations():
    x, y, groups = problem(1.0)
    fit = fit_ridge(x, y, groups, penalties=(0.1,))
    z = (x - x.mean(0)) / x.std(0)
    gram = z.T @ z
    expected = np.linalg.solve(gram + 0.1 * np.trace(gram) / 6 * np.eye(6), z.T @ (y - y.mean(0)))
    np.testing.assert_allclose(fit.weights, expected, rtol=1e-9)


def test_noise_is_shrunk_away():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((100, 80)), generator.standard_normal((100, 2))
    fit = fit_ridge(x, y, np.arange(100))
    assert fit.penalty >= 1
    fresh = generator.standard_normal((500, 80))
    assert np.abs(fit.predict(fresh) - y.mean(0)).max() < 0.5


def test_constant_features_and_more_features_than_rows():
    x, y, groups = problem(0.1, rows=60)
    wide = np.concatenate([x, np.full((60, 1), 3.0), np.random.default_rng(1).standard_normal((60, 100))], axis=1)
    fit = fit_ridge(wide, y, groups)
    assert np.isfinite(fit.weights).all() and np.allclose(fit.weights[6], 0)
    assert np.isfinite(fit.predict(wide)).all()


def test_r2():
    y = np.array([[0.0, 1.0], [2.0, 1.0]])
    assert r2_score(y, y) == 1.0
    assert r2_score(y, np.ones((2, 2))) == 0.0
    with pytest.raises(ValueError, match="do not vary"):
        r2_score(np.ones((3, 1)), np.ones((3, 1)))


def test_too_few_groups():
    x, y, _ = problem(0.0)
    with pytest.raises(ValueError, match="at least 5 utterances"):
        fit_ridge(x, y, np.arange(200) % 4)
