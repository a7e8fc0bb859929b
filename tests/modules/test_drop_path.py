"""Stochastic depth: whole rows, unbiased, off outside training."""

import torch

from d2v_plugin.modules.drop_path import DropPath


def test_drops_whole_rows_and_keeps_the_mean():
    x = torch.ones(4000, 3, 2)
    y = DropPath(0.25).train()(x)
    per_row = y.flatten(1)
    assert torch.equal(per_row.amin(1), per_row.amax(1))
    torch.testing.assert_close(per_row.unique(), torch.tensor([0.0, 1 / 0.75]))
    # 4,000 rows: the standard error of the mean is 0.009
    assert abs(float(y.mean()) - 1) < 0.05
    assert DropPath(0.25).eval()(x) is x and DropPath(0.0).train()(x) is x
