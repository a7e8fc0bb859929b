"""Every setting of precomputed masks gets from a YAML file to what draws the masks of a batch."""

import pytest
from fairseq import tasks
from tiny_training import CONVOLUTIONS, ROOT, resolved, scaled_down, write_data

from d2v_plugin.data import block_masks
from d2v_plugin.method.masking import block_mask
from d2v_plugin.modules.conv_spec import ConvSpec

FILES = {
    "audio": (ROOT / "examples" / "speech" / "base_librispeech_v2.yaml", "speech"),
    "image": (ROOT / "examples" / "vision" / "base_imagenet_v2.yaml", "vision"),
}
# two values of each, none of which is a default or stands in one of the files
GROWN = {
    "mask_prob": 0.55,
    "mask_prob_adjust": 0.06,
    "mask_length": 2,
    "inverse_mask": True,
    "mask_dropout": 0.03,
    "clone_batch": 3,
    "expand_adjacent": True,
    "non_overlapping": False,
}
TILED = {
    "mask_prob": 0.45,
    "mask_prob_adjust": 0.04,
    "mask_length": 3,
    "inverse_mask": False,
    "mask_dropout": 0.02,
    "clone_batch": 4,
    "expand_adjacent": False,
    "non_overlapping": True,
}
# which have no counterpart in a model's configuration
OWN = ("expand_adjacent", "non_overlapping")


@pytest.fixture(params=FILES)
def first_batch(request, tmp_path, monkeypatch):
    """Gives the modality, and a function of further settings: a first batch and what its masks were drawn with."""
    path, kind = FILES[request.param]
    data = write_data(tmp_path, kind)
    calls = []

    def spy(draws, grid, **settings):
        calls.append({"rows": draws.rows, "grid": grid, **settings})
        return block_mask(draws, grid, **settings)

    monkeypatch.setattr(block_masks, "block_mask", spy)

    def make(**more):
        cfg = resolved(scaled_down(path, data, tmp_path, **more))
        task = tasks.setup_task(cfg.task)
        task.load_dataset("train")
        dataset = task.dataset("train")
        iterator = task.get_batch_iterator(dataset, max_sentences=2, seed=1, required_batch_size_multiple=1)
        calls.clear()  # audio tries its settings when the task reads them
        batch = next(iter(iterator.next_epoch_itr(shuffle=False)))
        (call,) = calls
        return batch["net_input"], call

    return request.param, make


def drawn_with(call, B):
    """By the names that settings have in a configuration."""
    return {
        "mask_prob": call["prob"],
        "mask_prob_adjust": call["adjust"],
        "mask_length": call["length"],
        "inverse_mask": call["inverse"],
        "mask_dropout": call["dropout"],
        "clone_batch": call["rows"] / B,
        "expand_adjacent": call["expand_adjacent"],
        "non_overlapping": call["non_overlapping"],
    }


@pytest.mark.parametrize("wanted", [GROWN, TILED], ids=["grown", "tiled"])
def test_the_tasks_settings_reach_the_draw(first_batch, wanted):
    _, make = first_batch
    batch, call = make(**{f"task__precompute_mask_config__{name}": value for name, value in wanted.items()})
    assert drawn_with(call, len(batch["source"])) == wanted
    assert len(batch["precomputed_mask"]) == wanted["clone_batch"] * len(batch["source"])


@pytest.mark.parametrize("wanted", [GROWN, TILED], ids=["grown", "tiled"])
def test_the_models_settings_reach_the_draw(first_batch, wanted):
    modality, make = first_batch
    shared = {name: value for name, value in wanted.items() if name not in OWN}
    clones = shared.pop("clone_batch")
    more = {f"model__modalities__{modality}__{name}": value for name, value in shared.items()}
    batch, call = make(model__clone_batch=clones, **more)
    expected = {**shared, "clone_batch": clones, "expand_adjacent": False, "non_overlapping": False}
    assert drawn_with(call, len(batch["source"])) == expected


def test_the_grid_is_that_of_the_models_frames_or_patches(first_batch):
    modality, make = first_batch
    batch, call = make()
    samples = batch["source"].shape[-1]
    expected = (ConvSpec.parse(CONVOLUTIONS).frames(samples),) if modality == "audio" else (6, 6)
    assert call["grid"] == expected
    own = {"feature_encoder_spec": "[(8, 400, 320)]"} if modality == "audio" else {"patch_size": 4}
    batch, call = make(**{f"task__precompute_mask_config__{name}": value for name, value in own.items()})
    samples = batch["source"].shape[-1]
    assert call["grid"] == ((ConvSpec.parse("[(8, 400, 320)]").frames(samples),) if modality == "audio" else (12, 12))
