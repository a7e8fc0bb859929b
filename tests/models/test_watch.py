"""What a step reads from the device, and how the collapse watch sees the model."""

import pytest
import torch
from fairseq.logging import metrics
from on_device import OnDevice
from tiny_model import make, padded_batch

from d2v_plugin.criterions.d2v_regression import D2vRegressionCriterion
from d2v_plugin.method.collapse import MIN_ROWS, CollapseError

# -- host reads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [float, bool, torch.Tensor.tolist, lambda t: t[t > 0], lambda t: (t > 0).nonzero()])
def test_the_detector_of_host_reads_detects(read):
    with pytest.raises(AssertionError, match="host read"):
        read(torch.randn(1).as_subclass(OnDevice))


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_outside_the_watch_interval_reads_nothing(padded):
    model = make(watch_interval=100).train()
    model.set_num_updates(1)
    source, padding_mask, lengths = padded_batch()
    net_input = {"source": source.as_subclass(OnDevice)}
    if padded:
        net_input |= {"padding_mask": padding_mask.as_subclass(OnDevice), "source_lengths": lengths}
    criterion = D2vRegressionCriterion(None)
    loss, _, logs = criterion(model, {"id": torch.arange(3), "net_input": net_input})
    assert isinstance(loss, OnDevice) and isinstance(logs["target_var"], OnDevice)
    loss.backward()
    model.set_num_updates(2)
    with metrics.aggregate(new_root=True) as found:
        criterion.reduce_metrics([logs, logs])
        values = found.get_smoothed_values()  # fairseq asks for them at every update
    assert isinstance(values["loss"], OnDevice) and isinstance(values["target_var"], OnDevice)


def test_the_watch_reads_at_its_interval():
    model = make(watch_interval=2).train()
    model.set_num_updates(2)
    with pytest.raises(AssertionError, match="host read"):
        model(torch.randn(2, 4000).as_subclass(OnDevice))


# -- collapse ---------------------------------------------------------------------------------------


def test_the_watch_logs_spread_and_rank_at_three_places():
    model = make(watch_interval=1).train()
    logs = model(torch.randn(2, 4000))["logs"]
    assert set(logs) == {f"{place}_{what}" for place in ("feature", "student", "teacher") for what in ("std", "rank")}


def test_a_batch_of_few_frames_logs_the_same_keys_and_the_last_rank():
    """fairseq adds up the logs of all ranks key by key, so a rank with a short batch must not leave one out."""
    model = make(watch_interval=1).train()
    whole = model(torch.randn(2, 4000))["logs"]
    model.watch._checked = None
    short = model(torch.randn(1, 1200))["logs"]
    assert model.conv_spec.frames(1200) < MIN_ROWS <= 2 * model.conv_spec.frames(4000)
    assert short.keys() == whole.keys()
    assert short["student_rank"] is whole["student_rank"]
    assert short["student_std"] != whole["student_std"]


def test_the_watch_looks_at_the_teacher_before_normalisation_and_past_padding():
    model = make(watch_interval=1, instance_norm_target_layer=True).train()
    source, padding_mask, lengths = padded_batch()
    before = model(source, padding_mask, source_lengths=lengths)
    with torch.no_grad():  # the last layer grows; instance norm hides it from the targets
        model.ema.model.layers[-1].fc2.weight.mul_(1000), model.ema.model.layers[-1].fc2.bias.mul_(1000)
    source[1, 3200:] = 100.0  # what lies in the padding is not looked at
    model.watch._checked = None
    after = model(source, padding_mask, source_lengths=lengths)
    assert float(after["logs"]["teacher_std"]) > 300 * float(before["logs"]["teacher_std"])
    assert float(after["target_var"]) < 1.5
    assert float(after["logs"]["feature_std"]) == pytest.approx(float(before["logs"]["feature_std"]), rel=0.02)


def test_a_diverged_student_stops_the_run_at_once():
    model = make(watch_interval=1).train()
    with torch.no_grad():
        model.encoder.layers[0].fc1.weight.fill_(float("nan"))
    with pytest.raises(CollapseError, match="the loss is not finite at update 0"):
        model(torch.randn(2, 4000))


def test_a_collapsed_student_stops_the_run():
    model = make(watch_interval=1, collapse_guard_updates=3).train()
    with torch.no_grad():
        model.final_proj.weight.zero_()
    model.num_updates = 3
    model(torch.randn(2, 4000))
    model.num_updates = 4
    with pytest.raises(CollapseError, match="predictions hardly vary"):
        model(torch.randn(2, 4000))
