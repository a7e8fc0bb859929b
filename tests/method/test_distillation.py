"""A student that begins with the weights of another run is at update 0, and so is its teacher, whatever came before."""

import pytest
from tiny_multi import tiny


@pytest.mark.parametrize("teacher", ["file", "student"])
def test_a_new_run_begins_at_update_0_with_the_first_decay(teacher):
    saved, model = tiny("IMAGE"), tiny("IMAGE")
    saved.set_num_updates(0)
    state = saved.state_dict()
    # as fairseq does before it loads: the number of the file
    model.set_num_updates(10**6)
    assert model.ema.decay == model.cfg.ema_end_decay != model.cfg.ema_decay
    with model.beginning_with_weights(teacher):
        model.load_state_dict(state)
    assert (model.num_updates, model.ema.updates, model.ema.decay) == (0, 0, model.cfg.ema_decay)
