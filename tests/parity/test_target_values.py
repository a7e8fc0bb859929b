"""1.0 audio against upstream, value by value: targets, predictions, and training under every architecture switch."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

SPEC = importlib.util.spec_from_file_location("audio_parity", Path(__file__).with_name("test_data2vec_audio.py"))
audio = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audio)

ARCHITECTURES = [
    {"layer_norm_first": first, "extractor_mode": mode}
    for first, mode in itertools.product((False, True), ("default", "layer_norm"))
]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
padded_or_not = pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])


def targets_and_predictions(theirs, ours, source, padding_mask, mask):
    """((targets, predictions) of upstream, of ours), each (M, C)."""
    expected, targets, predictions = [], [], []
    recipe, variance = ours.target_recipe, theirs.compute_var
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        # Upstream measures the variance of its targets, then of its predictions.
        patch.setattr(theirs, "compute_var", lambda y: expected.append(y) or variance(y))
        patch.setattr(ours, "target_recipe", lambda *args: targets.append(recipe(*args)) or targets[-1])
        hook = ours.final_proj.register_forward_hook(lambda module, inputs, output: predictions.append(output))
        for model in (theirs, ours):
            model(source=source, padding_mask=padding_mask, mask_indices=mask.clone())
        hook.remove()
    return expected, [*targets, *predictions]


def assert_same_values(theirs, ours, padded):
    theirs.eval(), ours.eval()
    source, padding_mask = audio.batch(padded=padded)
    mask = audio.masks(ours, source, padding_mask)
    expected, found = targets_and_predictions(theirs, ours, source, padding_mask, mask)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape == (int(mask.sum()), audio.TINY["encoder_embed_dim"])
        assert audio.relative(a, b) < 1e-5


@padded_or_not
@pytest.mark.parametrize("flags", [(), *((f,) for f in audio.FLAGS), audio.FLAGS], ids="+".join)
def test_targets_of_every_normalisation(flags, padded):
    assert_same_values(*audio.pair(**{f: f in flags for f in audio.FLAGS}), padded)


@padded_or_not
@every_architecture
def test_targets_of_every_architecture(architecture, padded):
    assert_same_values(*audio.pair(**architecture), padded)


@pytest.mark.parametrize("flag", audio.FLAGS)
def test_gradients_under_every_normalisation(flag):
    theirs, ours = audio.pair(**{f: f == flag for f in audio.FLAGS})
    theirs.eval(), ours.eval()
    source, padding_mask = audio.batch(padded=True)
    audio.assert_same_step(theirs, ours, source, padding_mask, audio.masks(ours, source, padding_mask))


@every_architecture
def test_losses_over_20_steps_and_state_dicts_of_every_architecture(architecture):
    theirs, ours = audio.pair(**architecture, loss_beta=0.25)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    source, _ = audio.batch()
    mask = audio.masks(ours, source, None)
    expected, losses = audio.train(theirs, 20, source, mask), audio.train(ours, 20, source, mask)
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    theirs.load_state_dict(ours.state_dict())
    assert_same_values(theirs, ours, padded=False)
