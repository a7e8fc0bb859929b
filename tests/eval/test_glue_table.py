"""GLUE's average is the papers', and the best of a sweep is chosen as they do."""

import json

import pytest

from d2v_plugin.errors import UserError
from d2v_plugin.eval.glue_table import average, format_table, read_results, summary

# MNLI matched and mismatched, QNLI, RTE, MRPC, QQP, STS-B, CoLA, SST-2, and the mean that is printed beside them:
# arXiv:2202.03555, table 4, and the text table of arXiv:2212.07525
PUBLISHED = {
    "BERT": ((84.0, 84.4, 89.0, 61.0, 86.3, 89.1, 89.5, 57.3, 93.0), 81.2),
    "RoBERTa": ((84.1, 83.9, 90.4, 69.3, 89.0, 89.3, 88.9, 56.8, 92.3), 82.5),
    "data2vec, BERT masking": ((83.2, 83.0, 90.9, 67.0, 90.2, 89.1, 87.2, 62.2, 91.8), 82.7),
    "data2vec, spans": ((82.8, 83.4, 91.1, 69.9, 90.0, 89.0, 87.7, 60.3, 92.4), 82.9),
    "data2vec 2.0": ((83.7, 83.7, 90.7, 68.6, 88.8, 89.3, 87.3, 59.1, 92.9), 82.6),
}
METRICS = {"mrpc": "acc_and_f1", "qqp": "acc_and_f1", "sts_b": "pearson_and_spearman", "cola": "mcc"}


def results(values, lr="2e-5", seed=1):
    matched, mismatched, *others = values
    names = ("qnli", "rte", "mrpc", "qqp", "sts_b", "cola", "sst_2")
    found = [result("mnli", {"accuracy": matched, "mismatched_accuracy": mismatched}, lr, seed)]
    pairs = zip(names, others, strict=True)
    return found + [result(name, {METRICS.get(name, "accuracy"): score}, lr, seed) for name, score in pairs]


def result(task, scores, lr="2e-5", seed=1):
    return {"task": task, "lr": lr, "seed": seed, "scores": scores, "update": 10}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_means(name):
    values, mean = PUBLISHED[name]
    found = summary(results(values))
    assert found["average"] == pytest.approx(mean, abs=0.0501)  # of scores with one decimal
    assert f"MNLI as one: {found['average']:.1f}" in format_table(found)


def test_mnli_counts_once():
    assert summary(results((90.0, 70.0, *[0.0] * 7)))["average"] == 10.0


def test_no_average_of_some_tasks():
    found = summary(results(PUBLISHED["BERT"][0])[:-1])
    assert found["average"] is None
    assert found["missing"] == ["sst_2"]
    assert "no average, tasks are missing: SST-2" in format_table(found)
    assert average({}) is None


def test_best_run_and_best_rate():
    runs = [result("rte", {"accuracy": score}, lr, seed) for lr, seed, score in RUNS]
    best = summary(runs)["tasks"]["rte"]
    assert (best["score"], best["lr"], best["seeds"], best["runs"]) == (70.0, "1e-5", [2], 4)
    mean = summary(runs, mean=True)["tasks"]["rte"]
    assert (mean["score"], mean["lr"], mean["seeds"]) == (65.0, "2e-5", [1, 2])
    assert mean["std"] == pytest.approx(1.41421, abs=1e-4)
    assert "65.0 +- 1.4" in format_table(summary(runs, mean=True))


RUNS = (("1e-5", 1, 50.0), ("1e-5", 2, 70.0), ("2e-5", 1, 64.0), ("2e-5", 2, 66.0))


def test_one_rate_for_all_tasks():
    """That of the best average, though another is better for one task; a rate that a task lacks does not count."""
    values = PUBLISHED["data2vec, spans"][0]
    lower = results((*values[:3], 90.0, *(value - 5 for value in values[4:])), "1e-5")
    runs = [*lower, *results(values, "3e-5"), *results([value + 3 for value in values], "4e-5")[:-1]]
    assert {task["lr"] for task in summary(runs)["tasks"].values()} == {"1e-5", "3e-5", "4e-5"}
    found = summary(runs, one_rate=True)
    assert {task["lr"] for task in found["tasks"].values()} == {"3e-5"}
    assert f"{found['average']:.1f}" == "82.9"
    with pytest.raises(UserError, match="no learning rate has runs of all eight tasks"):
        summary(runs[:3], one_rate=True)


def test_mnli_is_chosen_by_the_matched_set_as_its_checkpoints_are():
    runs = [
        result("mnli", {"accuracy": 80.0, "mismatched_accuracy": 70.0}, "1e-5"),
        result("mnli", {"accuracy": 79.0, "mismatched_accuracy": 90.0}, "2e-5"),
    ]
    best = summary(runs)["tasks"]["mnli"]
    assert (best["lr"], best["score"]) == ("1e-5", 75.0)
    assert "80.0/70.0 (matched/mismatched)" in format_table(summary(runs))


def test_results_are_read_from_their_folders(tmp_path):
    with pytest.raises(UserError, match="no run has ended here"):
        read_results(tmp_path)
    folder = tmp_path / "rte" / "lr2e-5_seed1"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result("rte", {"accuracy": 60.0})))
    assert read_results(tmp_path) == [result("rte", {"accuracy": 60.0})]
    for broken in ("{", "[]", '{"task": "rte"}'):
        (folder / "result.json").write_text(broken)
        with pytest.raises(UserError, match="not a result of `d2v glue run`"):
            read_results(tmp_path)
