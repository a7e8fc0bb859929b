"""Heads and pooling where upstream has no say: settings that cannot work, and clips whose padding does not count."""

import pytest
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.pooling import MODES, HeadSettings, clip_scores, projections


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"prediction_mode": "median"}, "prediction_mode=median is not known; choose one of lin_softmax"),
        ({"eval_prediction_mode": "median"}, "eval_prediction_mode=median is not known"),
        ({"prediction_mode": "summary_mha"}, "summary_mha is not known, which no published code"),
        ({"prediction_mode": "proj_avg_proj", "eval_prediction_mode": "max"}, "need different layers"),
        ({"prediction_mode": "cls", "conv_kernel": 3}, "cls has no frames left to convolve"),
        ({"eval_prediction_mode": "average_before", "conv_kernel": 3}, "has no frames left to convolve"),
        ({"conv_kernel": 3, "conv_stride": 0}, "conv_stride must be at least 1"),
    ],
)
def test_settings_that_cannot_work(fields, match):
    with pytest.raises(UserError, match=match):
        HeadSettings(**fields)


CONVOLUTION = {"conv_kernel": 4, "conv_stride": 2}
HEADS = [{"prediction_mode": mode} for mode in MODES]
HEADS += [{"prediction_mode": mode, **CONVOLUTION} for mode in ("lin_softmax", "max", "average_sigmoid")]
HEADS += [{"prediction_mode": "average", "two_convs": True, **CONVOLUTION}]


@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_padding_does_not_count_where_it_is_told(fields):
    settings = HeadSettings(**fields)
    proj, proj2 = projections(settings, 6, 3)
    x = torch.randn(4, 20, 6)
    lengths = torch.tensor([20, 13, 8, 4])
    keep = torch.arange(20) < lengths[:, None]
    x[~keep] = torch.randn(int((~keep).sum()), 6) * 100
    together, are_logits = clip_scores(x, settings, proj, proj2, training=True, keep=keep)
    for row, length in enumerate(lengths):
        alone = x[row : row + 1, :length]
        expected, _ = clip_scores(alone, settings, proj, proj2, training=True)
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-5, atol=1e-5)
    assert are_logits is not fields["prediction_mode"].endswith("_sigmoid")


def test_a_batch_shorter_than_the_convolution_is_one_line():
    settings = HeadSettings(conv_kernel=9)
    proj, proj2 = projections(settings, 6, 3)
    with pytest.raises(UserError, match="a batch of 5 frames and model.conv_kernel=9; lower it"):
        clip_scores(torch.randn(1, 5, 6), settings, proj, proj2, training=True)


def test_linear_softmax_weighs_frames_by_themselves():
    probabilities = torch.tensor([[0.1, 0.5], [0.8, 0.5], [0.3, 0.5]])
    logits = torch.logit(probabilities)[None]
    settings = HeadSettings()
    scores, are_logits = clip_scores(logits, settings, torch.nn.Identity(), training=False)
    expected = probabilities.pow(2).sum(0) / probabilities.sum(0)
    assert are_logits
    torch.testing.assert_close(torch.sigmoid(scores)[0], expected)


def test_certain_frames_stay_finite_through_loss_and_gradient():
    logits = torch.tensor([[[200.0, -200.0], [200.0, -200.0]]], requires_grad=True)
    scores, _ = clip_scores(logits, HeadSettings(), torch.nn.Identity(), training=True)
    assert not torch.isnan(scores).any()
