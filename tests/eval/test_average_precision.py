"""Average precision against scikit-learn's, which comes with fairseq."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from d2v_plugin.eval.average_precision import average_precision, mean_average_precision


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 7, None])
def test_as_scikit_learn_with_and_without_equal_scores(seed, levels):
    rng = np.random.default_rng(seed)
    scores = rng.random((60, 9)) if levels is None else rng.integers(0, levels, (60, 9)).astype(float)
    wanted = rng.random((60, 9)) < 0.3
    wanted[0] = True
    each = [average_precision_score(wanted[:, k], scores[:, k]) for k in range(9)]
    assert [average_precision(scores[:, k], wanted[:, k]) for k in range(9)] == pytest.approx(each, abs=1e-12)
    assert mean_average_precision(scores, wanted) == pytest.approx(np.mean(each), abs=1e-12)


def test_classes_that_do_not_occur_are_left_out():
    scores, wanted = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[1, 0], [0, 0]])
    assert mean_average_precision(scores, wanted) == 1.0
    assert np.isnan(mean_average_precision(scores, np.zeros((2, 2))))


def test_worked_by_hand():
    # right at ranks 1 and 3: (1/1 + 2/3) / 2
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])) == pytest.approx(
        5 / 6
    )
    # one score for all: precision is the share of right ones
    assert average_precision(np.ones(4), np.array([True, False, False, False])) == 0.25
