"""``d2v_regression``: weights, logging, aggregation over micro-batches and ranks."""

import pytest
import torch
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from fairseq.logging.progress_bar import format_stat
from fairseq.nan_detector import NanDetector

from d2v_plugin.criterions.d2v_regression import D2vRegressionCriterion
from d2v_plugin.method.collapse import CollapseError


class Model(torch.nn.Module):
    num_updates = 3

    def __init__(self, **out):
        super().__init__()
        self.out = out

    def forward(self, source):
        return self.out


SAMPLE = {"id": torch.arange(4), "net_input": {"source": torch.zeros(1)}}


def test_sums_and_weighs_losses():
    model = Model(losses={"regression": torch.tensor([1.0, 2.0]), "cls": torch.tensor(4.0)}, sample_size=7)
    loss, size, logs = D2vRegressionCriterion(None, {"regression": 2.0, "cls": 0.5})(model, SAMPLE)
    assert (float(loss), size) == (8.0, 7)
    assert (float(logs["loss_regression"]), float(logs["loss_cls"]), logs["nsentences"]) == (6.0, 2.0, 4)


def test_a_loss_without_weight_names_it():
    model = Model(losses={"regression": torch.tensor(1.0), "cls": torch.tensor(1.0)}, sample_size=1)
    with pytest.raises(ValueError, match="no weight for the loss 'cls'"):
        D2vRegressionCriterion(None, {"regression": 1.0})(model, SAMPLE)


def test_logs_the_watch_when_it_looked():
    model = Model(
        losses={"r": torch.tensor(1.0)}, sample_size=1, logs={"student_rank": torch.tensor(5.0)}, ema_decay=999
    )
    logs = D2vRegressionCriterion(None)(model, SAMPLE)[2]
    assert float(logs["student_rank"]) == 5 and logs["ema_decay"] == 999


def test_what_is_tracked_does_not_count_as_a_look_of_the_watch():
    model = Model(losses={"r": torch.tensor(1.0)}, sample_size=1, logs={"ema_decay": 999}, ema_decay=999)
    logs = D2vRegressionCriterion(None)(model, SAMPLE)[2]
    assert logs["ema_decay"] == 999 and "_watched" not in logs


def reduced(logs):
    with metrics.aggregate(new_root=True) as found:
        D2vRegressionCriterion.reduce_metrics(logs)
    assert isinstance(found, MetersDict)
    return found.get_smoothed_values()


def log(**values):
    return {"loss": 6.0, "ntokens": 2, "nsentences": 1, "sample_size": 2, "_world_size": 1, **values}


@pytest.mark.parametrize("none", [0, torch.tensor(0)])
def test_nothing_masked_is_no_loss(none):
    found = reduced([log(sample_size=none, loss=torch.tensor(0.0))])
    assert found["loss"] == 0 and found["sample_size"] == 0


def test_the_loss_is_per_masked_frame_and_statistics_are_means():
    values = reduced([log(target_var=0.4), log(target_var=0.6, loss=2.0)])
    assert values["loss"] == pytest.approx(2.0)
    assert values["target_var"] == pytest.approx(0.5)


def test_outputs_already_summed_over_ranks_give_the_same():
    values = reduced([log(loss=8.0, sample_size=4, ntokens=4, nsentences=2, target_var=1.0, _world_size=2)])
    assert values["loss"] == pytest.approx(2.0)
    assert values["target_var"] == pytest.approx(0.5)


def test_what_only_some_batches_log_is_averaged_over_those():
    assert reduced([log(student_rank=8.0, _watched=1), log()])["student_rank"] == pytest.approx(8.0)


def test_accumulated_batches_of_several_ranks_summed_by_fairseq_give_the_mean_of_those_that_looked():
    """Two ranks, two micro-batches each; fairseq hands over one sum of all four, and the first of each looked."""
    summed = log(loss=24.0, sample_size=8, ntokens=8, nsentences=4, target_var=2.0, _world_size=4)
    values = reduced([{**summed, "student_rank": 8.0 + 6.0, "_watched": 2}])
    assert values["student_rank"] == pytest.approx(7.0)
    assert values["target_var"] == pytest.approx(0.5)


def test_values_are_printed_without_the_digits_of_fp32():
    values = reduced([log(target_var=torch.tensor(0.6))])
    assert format_stat(values["target_var"]) == 0.6
    assert values["nsentences"] == 1


def test_validation_logs_plain_numbers():
    model = Model(losses={"r": torch.tensor(1.0)}, sample_size=1, target_var=torch.tensor(0.5)).eval()
    assert {type(v) for v in D2vRegressionCriterion(None)(model, SAMPLE)[2].values()} <= {int, float}


def test_means_survive_a_checkpoint():
    with metrics.aggregate(new_root=True) as first:
        D2vRegressionCriterion.reduce_metrics([log(target_var=torch.tensor(0.4))])
    again = MetersDict()
    again.load_state_dict(first.state_dict())
    assert again.get_smoothed_value("target_var") == pytest.approx(0.4)


def test_a_step_repeated_in_search_of_nan_reads_the_loss_also_behind_a_wrapper():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **net_input):
            return self.module(**net_input)

    model = Model(losses={"r": torch.tensor(float("nan"))}, sample_size=1)
    wrapped = Wrapper(Wrapper(model))
    D2vRegressionCriterion(None)(wrapped, SAMPLE)
    detector = NanDetector(torch.nn.Linear(1, 1))  # of another model: its own hooks choke on calls by keyword
    model.register_forward_hook(lambda *_: None)
    D2vRegressionCriterion(None)(wrapped, SAMPLE)
    detector.has_printed_f = True
    model.register_forward_hook(detector.fhook_fn)
    with pytest.raises(CollapseError, match="loss is not finite"):
        D2vRegressionCriterion(None)(wrapped, SAMPLE)
