"""``audio_classification`` learns kinds of sounds, scores them over the whole set, and loads without the rest.

No recordings come with the tests, so sounds are made: tones, glides, noise and clicks, each in its own pitch, loudness
and length, and with some noise in the background.
"""

import shutil

import numpy as np
import pytest
import torch
from audio_corpus import RATE, Corpus
from fairseq import checkpoint_utils, tasks
from fairseq.criterions.model_criterion import ModelCriterion
from fairseq.logging import metrics
from fairseq.tasks.audio_classification import AudioClassificationConfig
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score
from tiny_training import ROOT, scaled_down, train
from validating import logged, validated

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.register import register_plugin

EXAMPLES = ROOT / "examples" / "speech"
KINDS = ("tone", "glide", "noise", "clicks")
RECIPES = {1: "base_librispeech", 2: "base_librispeech_v2"}


def sound(kind, rng):
    """(samples,) fp32 of 0.4 to 0.6 s."""
    samples = int(RATE * rng.uniform(0.4, 0.6))
    time, pitch = np.arange(samples) / RATE, rng.uniform(300, 900)
    wave = {
        "tone": lambda: np.sin(2 * np.pi * pitch * time),
        "glide": lambda: np.sin(2 * np.pi * (pitch + 4000 * time) * time),
        "noise": lambda: rng.standard_normal(samples),
        "clicks": lambda: 4.0 * (np.arange(samples) % int(rng.uniform(400, 900)) < 8),
    }[kind]()
    return (rng.uniform(0.05, 0.5) * (wave + 0.05 * rng.standard_normal(samples))).astype(np.float32)


def write_sounds(folder, both=False):
    """``both``: every third recording has two kinds at once."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("eval", 20)):
        corpus, labels = Corpus(folder), []
        for n in range(count):
            kinds = [n % 4, (n + 1 + n // 4) % 4] if both and n % 3 == 0 else [n % 4]
            waves = [sound(KINDS[k], rng) for k in kinds]
            width = min(map(len, waves))
            corpus.add(f"{split}{n}.wav", wave=sum(wave[:width] for wave in waves))
            labels.append(f"0\t1\t{','.join(map(str, sorted(set(kinds))))}\n")
        corpus.manifest(f"{split}.tsv")
        (folder / f"{split}.lbl").write_text("".join(labels))
    (folder / "label_descriptors.csv").write_text("".join(f"{n},{kind}\n" for n, kind in enumerate(KINDS)))
    return folder


LEARN = {
    "optimization__max_update": 60,
    "dataset__max_tokens": 80_000,
    "dataset__validate_interval": 3,
    "model__feature_grad_mult": 1.0,
    "model__mask_prob": 0.1,
    "model__layerdrop": 0.0,
    "model__attention_dropout": 0.0,
    "model__source_mixup": 0.8,
    "model__freeze_finetune_updates": 3,
    "optimizer__groups__pretrained__lr_float": 0.003,
    "optimizer__groups__projection__lr_float": 0.01,
}


@pytest.fixture(scope="module", params=[1, 2])
def run(request, tmp_path_factory):
    """``(data, run, what each validation logged)`` of a training whose pre-trained checkpoint is gone."""
    folder = write_sounds(tmp_path_factory.mktemp("sounds"))
    pretrained, out = folder / "pretrained", folder / "out"
    train(scaled_down(EXAMPLES / f"{RECIPES[request.param]}.yaml", folder, pretrained))
    recipe = EXAMPLES / "audioset_classification.yaml"
    with logged("eval") as lines:
        train(scaled_down(recipe, folder, out, pretrained / "checkpoint_last.pt", **LEARN))
    shutil.rmtree(pretrained)
    return folder, out, lines


def test_learns_the_kinds_of_sounds(run):
    _, out, lines = run
    scores = {name: [float(line[f"eval_{name}"]) for line in lines] for name in ("mAP", "accuracy")}
    assert max(scores["mAP"]) > 0.85 > scores["mAP"][0]
    assert max(scores["accuracy"]) >= 0.7
    # shares of 20 recordings
    assert all(abs(value * 20 - round(value * 20)) < 1e-3 for value in scores["accuracy"])
    best = read_checkpoint(out / "checkpoint_best.pt")
    assert best["extra_state"]["best"] == best["extra_state"]["val_loss"] == max(scores["mAP"])


def test_loads_and_validates_without_the_pretrained_file_and_the_training_data(run, tmp_path):
    folder, out, lines = run
    data = tmp_path / "data"
    data.mkdir()
    for name in ("eval.tsv", "eval.lbl"):
        shutil.copy(folder / name, data / name)
    # other batches, the same score
    found = validated(out / "checkpoint_best.pt", data, "audio_classification", "eval", max_tokens=12_000)
    best = max(lines, key=lambda line: float(line["eval_mAP"]))
    assert found["mAP"] == pytest.approx(float(best["eval_mAP"]), abs=0.02)

    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(out / "checkpoint_best.pt")])
    assert task.labels == {kind: n for n, kind in enumerate(KINDS)}
    state = read_checkpoint(out / "checkpoint_best.pt")["model"]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def task_of(folder, **fields):
    register_plugin()
    root = {"common": {"seed": 1, "tpu": False}, "task": {"_name": "audio_classification", **fields}, "model": {}}
    root["task"] |= {"data": str(folder), "normalize": True}
    return tasks.setup_task(OmegaConf.create(root).task)


def test_map_is_that_of_the_whole_set_however_it_is_divided(tmp_path):
    """Batches of several processes reach ``reduce_metrics`` together, one list an update."""
    task = task_of(write_sounds(tmp_path, both=True))
    task.load_dataset("eval")
    targets = torch.stack([task.dataset("eval")[n]["label"] for n in range(20)])
    predictions = torch.rand(20, 4)
    expected = np.mean([average_precision_score(targets[:, k], predictions[:, k]) for k in range(4)])
    parts = {1: [[20]], 2: [[6, 6], [5, 3]], 3: [[1, 9], [4], [6]]}
    for division in parts.values():
        start, criterion = 0, ModelCriterion(task, log_keys=[], can_sum=False)
        with metrics.aggregate(new_root=True) as found:
            for update in division:
                logs = []
                for size in update:
                    rows = slice(start, start + size)
                    log = {"loss": 1.0, "ntokens": 1, "nsentences": size, "sample_size": 1, "_world_size": 1}
                    logs.append(log | {"_predictions": predictions[rows].half(), "_targets": targets[rows]})
                    start += size
                task.reduce_metrics(logs, criterion)
        values = found.get_smoothed_values()
        assert values["mAP"] == pytest.approx(expected, abs=2e-3)
        assert "accuracy" not in values  # some have two classes


def test_the_criterion_is_told_what_the_metrics_need(tmp_path):
    task = task_of(write_sounds(tmp_path))
    criterion = task.build_criterion(
        OmegaConf.create({"_name": "model", "loss_weights": {}, "log_keys": [], "can_sum": True})
    )
    assert criterion.log_keys == ["_predictions", "_targets"] and not criterion.logging_outputs_can_be_summed()


def test_defaults_of_fairseqs_task_of_this_name_come_first_on_the_command_line(tmp_path):
    """It is registered until the plugin is imported, which is after the first defaults are filled in."""
    own = OmegaConf.to_container(OmegaConf.structured(AudioClassificationConfig))
    fields = {key: value for key, value in own.items() if not str(value).startswith("${") and key != "_name"}
    assert fields["labels"] is None
    task = task_of(write_sounds(tmp_path), **fields)
    task.load_dataset("train")
    assert len(task.dataset("train")) == 32


def test_labels_that_are_missing_or_wrong_are_one_line(tmp_path):
    folder = write_sounds(tmp_path)

    def refused(match, split="train", **fields):
        with pytest.raises(UserError, match=match) as caught:
            task_of(folder, **fields).load_dataset(split)
        assert "\n" not in str(caught.value)

    refused(r"other\.csv: this file does not exist; .*task\.label_descriptors", label_descriptors="other.csv")
    refused(r"train\.cls: this label file does not exist", labels="cls")
    refused(r"task\.target_dictionary is of fairseq's own", target_dictionary="x")
    refused(r"valid\.tsv: this manifest does not exist", split="valid")
    lines = (folder / "train.lbl").read_text().splitlines()
    (folder / "train.lbl").write_text("\n".join(lines[:-1]))
    refused(r"train\.lbl has 31 lines but .*train\.tsv has 32 entries")
    (folder / "train.lbl").write_text("\n".join([*lines[:-1], "0\t1\t4"]))
    refused(r"train\.lbl:32: class 4 is not among the 4 of .*label_descriptors\.csv")
