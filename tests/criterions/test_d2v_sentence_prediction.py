"""``d2v_sentence_prediction``: scores are those of the whole validation set, whatever its batches and processes."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from fairseq.data import Dictionary
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from d2v_plugin.criterions.d2v_sentence_prediction import D2vSentencePredictionConfig, D2vSentencePredictionCriterion
from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks import install

HEAD = "sentence_classification_head"
SAMPLES = 23


class Model(torch.nn.Module):
    """Knows the scores of each sample."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.classification_heads = {HEAD: None}

    def forward(self, id, features_only, classification_head_name):
        return self.scores[id], None

    def get_targets(self, sample, output):
        return sample["target"]


def labels_of(*names):
    dictionary = Dictionary()
    for name in names:
        dictionary.add_symbol(name)
    return dictionary


def made(
    classes, kind=D2vSentencePredictionCriterion, config=D2vSentencePredictionConfig, names=("0", "1"), **settings
):
    """(criterion, model, targets) over ``SAMPLES`` samples; 1 class is a regression."""
    draw = torch.Generator().manual_seed(classes)
    scores = torch.randn(SAMPLES, classes, generator=draw)
    targets = torch.rand(SAMPLES, 1, generator=draw)
    if classes > 1:
        targets = torch.randint(0, classes, (SAMPLES, 1), generator=draw)
    cfg = SimpleNamespace(num_classes=classes)
    task = SimpleNamespace(target_dictionary=None, label_dictionary=labels_of(*names), cfg=cfg)
    criterion = kind(config(regression_target=classes == 1, **settings), task)
    return criterion.eval(), Model(scores).eval(), targets


def logs(criterion, model, targets, batches):
    for ids in batches:
        sample = {"net_input": {"id": ids}, "target": targets[ids], "ntokens": 7 * len(ids)}
        yield criterion(model, sample)[2]


def scored(criterion, outputs):
    """What fairseq's validation makes of the logs of each batch."""
    with metrics.aggregate(new_root=True) as found:
        for output in outputs:
            criterion.reduce_metrics([output] if isinstance(output, dict) else output)
    return {key: float(value) for key, value in found.get_smoothed_values().items() if not isinstance(value, list)}


BATCHES = torch.arange(SAMPLES).split([9, 1, 8, 5])
BINARY = {"report_mcc": True, "report_acc_and_f1": True}


@pytest.mark.parametrize("names", [("0", "1"), ("1", "0"), ("1", "0", "madeupword0000")], ids=str)
def test_labels_over_batches(names):
    criterion, model, targets = made(2, names=names, **BINARY)
    found = scored(criterion, logs(criterion, model, targets, BATCHES))
    predictions, truth = model.scores.argmax(1).numpy(), targets.view(-1).numpy()
    accuracy = 100 * (predictions == truth).mean()
    f1 = 100 * f1_score(truth == names.index("1"), predictions == names.index("1"))
    assert found["accuracy"] == pytest.approx(accuracy, abs=0.006)
    assert found["f1"] == pytest.approx(f1, abs=0.006)
    assert found["acc_and_f1"] == pytest.approx((accuracy + f1) / 2, abs=0.006)
    assert found["mcc"] == pytest.approx(100 * matthews_corrcoef(truth, predictions), abs=0.006)
    assert not any(key.startswith("_") for key in found)
    means = [scored(criterion, [log])["f1"] for log in logs(criterion, model, targets, BATCHES)]
    assert abs(np.mean(means) - f1) > 1


def test_several_classes_and_the_loss():
    criterion, model, targets = made(3, names=("a", "b", "c"), report_mcc=True)
    found = scored(criterion, logs(criterion, model, targets, BATCHES))
    loss = torch.nn.functional.cross_entropy(model.scores, targets.view(-1))
    assert found["loss"] == pytest.approx(float(loss) / np.log(2), abs=6e-4)
    predictions = model.scores.argmax(1).numpy()
    assert found["mcc"] == pytest.approx(100 * matthews_corrcoef(targets.view(-1), predictions), abs=0.006)


def test_values_over_batches():
    criterion, model, targets = made(1, report_pearson_and_spearman=True)
    found = scored(criterion, logs(criterion, model, targets, BATCHES))
    a, b = model.scores.view(-1).numpy(), targets.view(-1).numpy()
    expected = 100 * stats.pearsonr(a, b)[0], 100 * stats.spearmanr(a, b)[0]
    assert found["pearson"] == pytest.approx(expected[0], abs=0.006)
    assert found["spearman"] == pytest.approx(expected[1], abs=0.006)
    assert found["pearson_and_spearman"] == pytest.approx(np.mean(expected), abs=0.006)
    assert found["loss"] == pytest.approx(np.mean((a - b) ** 2) / np.log(2), abs=6e-4)
    assert "accuracy" not in found


def test_training_logs_no_predictions():
    for classes, settings in ((2, BINARY), (1, {"report_pearson_and_spearman": True})):
        criterion, model, targets = made(classes, **settings)
        criterion.train(), model.train()
        assert criterion.logging_outputs_can_be_summed()
        for log in logs(criterion, model, targets, BATCHES):
            assert all(torch.as_tensor(value).dim() == 0 for value in log.values())


# -- two processes -----------------------------------------------------------------------------------

KINDS = {
    "ours": (D2vSentencePredictionCriterion, D2vSentencePredictionConfig),
    "fairseq's": (SentencePredictionCriterion, SentencePredictionConfig),
}
CASES = [(2, BINARY), (1, {"report_pearson_and_spearman": True})]


def _validate(rank, port, folder):
    """Every second batch here, as fairseq divides them: the second process has one less, and a dummy in its place."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    install()
    # fairseq gathers through buffers on a GPU
    torch.cuda.ByteTensor, torch.Tensor.pin_memory = torch.ByteTensor, lambda self: self
    found = {}
    for whose, parts in KINDS.items():
        for classes, settings in CASES:
            criterion, model, targets = made(classes, *parts, **settings)
            trainer = SimpleNamespace(
                task=FairseqTask(None),
                get_criterion=lambda criterion=criterion: criterion,
                cfg=SimpleNamespace(common=SimpleNamespace(all_gather_list_size=16384)),
                data_parallel_process_group=torch.distributed.group.WORLD,
                device=torch.device("cpu"),
                tpu=False,
            )
            for name in ("_all_gather_list_sync", "_fast_stat_sync_sum"):
                setattr(trainer, name, getattr(Trainer, name).__get__(trainer))
            own = list(torch.arange(SAMPLES).split(5))[rank::2]
            own += [own[0]] * (3 - len(own))
            outputs = []
            for turn, log in enumerate(logs(criterion, model, targets, own)):
                ignore = rank == 1 and turn == 2
                outputs.append(Trainer._aggregate_logging_outputs(trainer, [log], 5, ignore=ignore)[0])
            found[whose, classes] = scored(criterion, outputs)
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_score_as_one(tmp_path):
    torch.multiprocessing.spawn(_validate, args=(27_000 + os.getpid() % 2000, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "0.pt")
    assert found == torch.load(tmp_path / "1.pt")
    for classes, settings in CASES:
        criterion, model, targets = made(classes, **settings)
        expected = scored(criterion, logs(criterion, model, targets, [torch.arange(SAMPLES)]))
        assert found["ours", classes] == pytest.approx(expected, abs=1e-9)
        for key in expected.keys() - {"loss"}:
            # rounded to one decimal there
            assert found["fairseq's", classes][key] == pytest.approx(expected[key], abs=0.0501), key


def test_fairseqs_own_scores_a_batch_of_one():
    """As it does with each batch of a validation set; SciPy refuses to correlate one pair."""
    install()
    kind, config = SentencePredictionCriterion, SentencePredictionConfig
    criterion, model, targets = made(1, kind, config, report_pearson_and_spearman=True)
    found = scored(criterion, logs(criterion, model, targets, [torch.arange(1)]))
    assert found["pearson"] == found["spearman"] == found["pearson_and_spearman"] == 0


# -- what is refused ---------------------------------------------------------------------------------


def test_a_model_without_the_head_and_a_split_without_labels():
    criterion, model, targets = made(2)
    with pytest.raises(UserError, match="this split has no labels"):
        criterion(model, {"net_input": {"id": torch.arange(2)}, "ntokens": 3})
    model.classification_heads = {}
    with pytest.raises(UserError, match="the model has no classification head 'sentence_classification_head'"):
        next(logs(criterion, model, targets, BATCHES))


@pytest.mark.parametrize("names", [("yes", "no"), ("0", "2")], ids=str)
def test_f1_needs_the_class_called_1(names):
    with pytest.raises(UserError, match='scores the class "1" of "0" and "1", and the labels are'):
        made(2, names=names, report_acc_and_f1=True)
