"""Scores of labels and values agree with scikit-learn and SciPy, also when counts are added up."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from d2v_plugin.eval.label_scores import accuracy, confusion, f1, matthews, pearson, ranks, spearman


def counted(predictions, labels, classes):
    return confusion(torch.from_numpy(predictions).long(), torch.from_numpy(labels).long(), classes).numpy()


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_labels_against_scikit_learn(classes, share):
    draw = np.random.default_rng(classes)
    labels = draw.integers(0, classes, 200)
    predictions = np.where(draw.random(200) < share, labels, draw.integers(0, classes, 200))
    counts = counted(predictions, labels, classes)
    assert (counts == metrics.confusion_matrix(labels, predictions, labels=range(classes))).all()
    assert accuracy(counts) == pytest.approx(metrics.accuracy_score(labels, predictions), abs=1e-12)
    assert matthews(counts) == pytest.approx(metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
    for positive in range(classes):
        expected = metrics.f1_score(labels == positive, predictions == positive)
        assert f1(counts, positive) == pytest.approx(expected, abs=1e-12)
    parts = [counted(predictions[k::3], labels[k::3], classes) for k in range(3)]
    assert (sum(parts) == counts).all()


def test_the_mean_over_batches_would_be_another_number():
    labels, predictions = np.array([1, 0, 1, 0, 0, 0]), np.array([0, 1, 1, 0, 0, 1])
    halves = [f1(counted(predictions[k : k + 3], labels[k : k + 3], 2), 1) for k in (0, 3)]
    assert f1(counted(predictions, labels, 2), 1) != pytest.approx(np.mean(halves), abs=1e-3)


@pytest.mark.parametrize("predictions", [[0, 0, 0], [1, 1, 1]])
def test_one_class_alone(predictions):
    counts = counted(np.array(predictions), np.array([0, 1, 1]), 2)
    assert matthews(counts) == metrics.matthews_corrcoef([0, 1, 1], predictions) == 0
    assert f1(counted(np.zeros(3), np.zeros(3), 2), 1) == 0


def test_values_against_scipy():
    draw = np.random.default_rng(0)
    a = draw.normal(size=100).round(1)  # with ties
    b = (a + draw.normal(size=100)).round(1)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-12)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)
    assert ranks(a) == pytest.approx(stats.rankdata(a) - 1)


@pytest.mark.parametrize("a", [[1.0, 1.0, 1.0], [1.0, float("nan"), 2.0], [1.0, float("inf"), 2.0]])
def test_values_that_say_nothing_score_nothing(a):
    assert pearson(np.array(a), np.array([1.0, 2.0, 3.0])) == 0
    assert spearman(np.array(a), np.array([1.0, 2.0, 3.0])) == 0
    assert np.isnan(accuracy(np.zeros((2, 2))))
