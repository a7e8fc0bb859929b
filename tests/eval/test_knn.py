"""k nearest neighbours, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from d2v_plugin.errors import UserError
from d2v_plugin.eval import knn
from d2v_plugin.eval.few_labels import few_of_each
from d2v_plugin.eval.knn import accuracy, knn_accuracy, knn_mean, knn_predict


def clouds(count, seed, spread=0.4):
    """(count, 5) around four directions, of any length, and which of them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    points = torch.eye(5)[labels] + spread * torch.randn(count, 5, generator=generator)
    return points * (0.1 + 10 * torch.rand(count, 1, generator=generator)), labels


@pytest.mark.parametrize("k", [1, 5, 20])
def test_predictions_equal_scikit_learns(k):
    train, labels = clouds(300, 1)
    queries, truth = clouds(200, 2)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(train.double().numpy(), labels.numpy())
    expected = torch.from_numpy(theirs.predict(queries.double().numpy()))
    assert torch.equal(knn_predict(train, labels, queries, k=k), expected)
    assert knn_accuracy(train, labels, queries, truth, k=k) == accuracy(expected, truth) > 0.5


def test_one_very_near_outvotes_two_far_unless_the_temperature_is_high():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[3.0, 0.0]])
    assert knn_predict(train, labels, query, k=3).tolist() == [0]
    assert knn_predict(train, labels, query, k=3, temperature=10.0).tolist() == [1]
    assert knn_predict(train, labels, query, k=1, temperature=10.0).tolist() == [0]


def test_small_temperatures_stay_in_range():
    train, labels = clouds(50, 1)
    assert torch.equal(knn_predict(train, labels, train, k=5, temperature=1e-4), labels)


def test_queries_come_in_parts(monkeypatch):
    train, labels = clouds(60, 1)
    queries, _ = clouds(25, 2)
    whole = knn_predict(train, labels, queries)
    monkeypatch.setattr(knn, "ROWS", 7)
    assert torch.equal(knn_predict(train, labels, queries), whole)
    assert knn_predict(train, labels, queries[:0]).tolist() == []


def test_half_precision_features_are_compared_in_full():
    train, labels = clouds(200, 1)
    queries, _ = clouds(50, 2)
    found = knn_predict(train.half(), labels, queries.half())
    assert torch.equal(found, knn_predict(train.half().float(), labels, queries.half().float()))


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_there_are(k):
    with pytest.raises(UserError, match=f"between 1 and the 3 labelled examples, got {k}"):
        knn_predict(torch.eye(3), torch.arange(3), torch.eye(3), k=k)


def test_the_mean_of_the_neighbours():
    """Two neighbours as far away as each other, and one that is all there is."""
    train, values = torch.eye(3), torch.tensor([[0.0, 10.0], [2.0, 20.0], [4.0, 60.0]])
    queries = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert torch.allclose(knn_mean(train, values, queries, k=2)[0], torch.tensor([1.0, 15.0]))
    assert torch.allclose(knn_mean(train, values, queries, k=1)[1], torch.tensor([4.0, 60.0]))
    # the other two are so much less alike that they hardly count
    assert torch.allclose(knn_mean(train, values, queries, k=3)[1], torch.tensor([4.0, 60.0]), atol=1e-3)
    with pytest.raises(UserError, match="between 1 and the 3 labelled examples, got 4"):
        knn_mean(train, values, queries, k=4)


def test_nothing_to_score():
    with pytest.raises(UserError, match="nothing to score"):
        accuracy(torch.tensor([]), torch.tensor([]))


def test_few_of_each_class():
    labels = torch.randint(0, 3, (90,), generator=torch.Generator().manual_seed(0))
    picked = few_of_each(labels, 4)
    assert labels[picked].bincount().tolist() == [4, 4, 4] and len(picked.unique()) == 12
    assert torch.equal(picked, few_of_each(labels, 4)) and not torch.equal(picked, few_of_each(labels, 4, seed=2))
    with pytest.raises(UserError, match="class 1 has 1 images, 2 are wanted"):
        few_of_each(torch.tensor([0, 0, 1]), 2)
