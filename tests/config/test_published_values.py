"""Our recipes hold the values of fairseq's own files, key by key; every difference is written down here."""

import fnmatch
import re
from pathlib import Path

import fairseq
import pytest
import yaml
from omegaconf import OmegaConf
from tiny_training import ROOT

from d2v_plugin.optim.adamw import parse_betas

EXAMPLES = ROOT / "examples"
UPSTREAM = Path(fairseq.__file__).parent / "examples"

CTC_SPLITS = ("10m", "1h", "10h", "100h", "960h")
PAIRS = {
    "speech/base_librispeech": "data2vec/config/audio/pretraining/base_librispeech",
    "speech/base_audioset": "data2vec/config/audio/pretraining/audioset",
    **{f"speech/ctc_base_{split}": f"wav2vec/config/finetuning/base_{split}" for split in CTC_SPLITS},
    **{f"speech/ctc_large_{split}": f"wav2vec/config/finetuning/vox_{split}" for split in CTC_SPLITS},
    # no file of 2.0 Base has been published: that of wav2vec 2.0 Base, as 1.0
    **{f"speech/ctc_base_{split}_v2": f"wav2vec/config/finetuning/base_{split}" for split in CTC_SPLITS},
    **{f"speech/ctc_large_{split}_v2": f"wav2vec/config/finetuning/vox_{split}_2" for split in CTC_SPLITS},
    "speech/audioset_classification": "data2vec/config/audio/classification/base_classification",
    "speech/base_librispeech_v2": "data2vec/config/v2/base_audio_only_task",
    "speech/large_librilight_v2": "data2vec/config/v2/large_audio_only_task",
    "vision/base_imagenet_v2": "data2vec/config/v2/base_images_only_task",
    "vision/large_imagenet_v2": "data2vec/config/v2/large_images_only_task",
    "vision/huge_imagenet_v2": "data2vec/config/v2/huge_images_only_task",
    "vision/huge14_imagenet_v2": "data2vec/config/v2/huge_images14_only_task",
    "vision/mae_base_imagenet": "data2vec/config/vision/pretraining/base_mae_imagenet",
    "vision/finetune_base_imagenet_v2": "data2vec/config/vision/finetuning/mae_imagenet_clean",
    "vision/finetune_large_imagenet_v2": "data2vec/config/vision/finetuning/mae_imagenet_large_clean",
    "vision/finetune_huge_imagenet_v2": "data2vec/config/vision/finetuning/mae_imagenet_huge_clean",
    "vision/finetune_base_imagenet": "data2vec/config/vision/finetuning/imagenet",
    "vision/base_imagenet": "data2vec/config/vision/pretraining/base_imagenet_d2v1",
    "text/base_books_wiki": "data2vec/config/text/pretraining/base",
    "text/base_books_wiki_v2": "data2vec/config/v2/base_text_only_task",
    "text/large_books_wiki_v2": "data2vec/config/v2/large_text_only_task",
    "text/large_books_wiki_v2_pgrp_1m": "data2vec/config/v2/large_text_only_task_pgrp_1M",
}
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst_2", "sts_b")
PAIRS |= {f"text/glue/{name}": f"data2vec/config/v2/text_finetuning/{name}" for name in GLUE}
PAIRS |= {f"text/glue_v1/{name}": f"roberta/config/finetuning/{name}" for name in GLUE}
# our files with no published counterpart
OURS_ALONE = ("speech/large_librilight", "vision/large_imagenet", "spectrogram/pretrain", "*/demo_*")
OURS_ALONE += ("vision/finetune_large_imagenet", "vision/finetune_mae_base_imagenet", "vision/finetune_digits")
OURS_ALONE += ("text/finetune_demo",)

# keys of theirs that ours leave out
LEFT_OUT = {
    "common.user_dir": "ours is the plugin",
    "common.tensorboard_logdir": "needs a package that nothing else here uses",
    "optimization.debug_param_names": "prints every parameter's name",
    "task.local_cache_path": "a folder of the authors' machines",
    "task.data": "comes from the command line",
    "criterion.log_keys": "d2v_regression knows what to log",
    "criterion._name": "model: d2v_regression sums the same losses",
    "criterion": "the same, spelt shorter",
    "criterion.wer_*": "the authors' language model; greedy while training, and `d2v eval-ctc --lm` afterwards",
    "hydra.*": "the authors' cluster",
}
# keys of ours that theirs do not have
ADDED = {"common.user_dir", "task.data", "checkpoint.save_dir", "criterion._name", "hydra.run.dir", "hydra.job.chdir"}
RENAMED = {
    "audio_pretraining": "d2v_audio_pretraining",
    "audio_finetuning": "d2v_audio_finetuning",
    "masked_lm": "d2v_masked_lm",
    "sentence_prediction": "d2v_sentence_prediction",
    "adam": "d2v_adamw",
}
ABSENT = "absent"
# what they leave unsaid is the default of fairseq's adam; that of d2v_adamw is another
DECAY, EPS = {"optimizer.weight_decay": (ABSENT, 0.0)}, {"optimizer.adam_eps": (ABSENT, 1e-8)}
# ours leave out a default, and what no run without validation looks at
BASE = {"dataset.validate_interval": (5, ABSENT), "model.encoder_embed_dim": (768, ABSENT)}
# data2vec is pre-trained on normalised waveforms, wav2vec 2.0 Base was not
NORMALIZED = {"task.normalize": (False, True)}
ONE_STEP = {"optimization.update_freq": (ABSENT, [1])}
# the paper's values where it gives any, in two groups of parameters
CLASSIFICATION = {
    "common.all_gather_list_size": (70000, 1000000),  # theirs is full after 16 clips
    "common.fp16_no_flatten_grads": (ABSENT, True),
    "criterion.log_keys": (ABSENT, ["_predictions", "_targets"]),  # theirs has them, see LEFT_OUT
    "optimization.max_update": (30000, 13000),
    "optimization.lr": ([6e-5], [3e-5]),
    "model.mask_prob": (0.6, 0.45),
    "model.mask_length": (5, 4),
    "model.mixup_prob": (ABSENT, 0.7),
    "lr_scheduler._name": ("cosine", "pass_through"),
    "lr_scheduler.warmup_updates": (5000, ABSENT),
    "optimizer._name": ("d2v_adamw", "composite"),
    "optimizer.dynamic_groups": (ABSENT, True),
    "optimizer.adam_betas": ([0.9, 0.98], ABSENT),
    "optimizer.adam_eps": (1e-8, ABSENT),
}
for _group, _rate in (("pretrained", 3e-5), ("projection", 2e-4)):
    _values = {"_name": "d2v_adamw", "adam_betas": [0.9, 0.98], "adam_eps": 1e-8, "weight_decay": 0.0}
    _at = f"optimizer.groups.{_group}"
    CLASSIFICATION |= {f"{_at}.optimizer.{key}": (ABSENT, value) for key, value in _values.items()}
    CLASSIFICATION |= {f"{_at}.lr_scheduler._name": (ABSENT, "cosine"), f"{_at}.lr_float": (ABSENT, _rate)}
    CLASSIFICATION |= {f"{_at}.lr_scheduler.warmup_updates": (ABSENT, 2000)}
# fairseq's port of the paper's code for images, and that code (facebookresearch/data2vec_vision)
BEIT = {
    "common.fp16_no_flatten_grads": (ABSENT, True),
    "distributed_training.ddp_backend": ("legacy_ddp", "c10d"),
    "optimization.max_update": (375300, 500000),
    "optimization.lr": ([0.0005], [0.002]),
    "lr_scheduler.warmup_updates": (12510, 6250),
    "lr_scheduler.warmup_init_lr": (ABSENT, 1e-6),
    "lr_scheduler.min_lr": (ABSENT, 1e-5),
    "model.num_mask_patches": (ABSENT, 120),
    "model.min_mask_patches_per_block": (ABSENT, 16),
    "model.max_mask_patches_per_block": (ABSENT, 196),
    "model.layer_scale_init_value": (ABSENT, 1e-4),
    "model.ema_decay": (0.999, 0.9998),
    "model.ema_transformer_only": (ABSENT, False),
    "model.end_of_block_targets": (ABSENT, True),
    "model.layer_norm_target_layer": (ABSENT, True),
    "model.project_predictions": (ABSENT, True),
    "model.loss_scale": (ABSENT, 0.0013020833),
}
# the same for its fine-tuning
BEIT_CLASSIFICATION = {
    "common.fp16_no_flatten_grads": (ABSENT, True),
    "checkpoint.maximize_best_checkpoint_metric": (ABSENT, True),
    "dataset.batch_size": (64, 128),
    "optimization.max_update": (100000, 125100),
    "optimization.lr": ([0.0005], [0.004]),
    "optimizer.adam_betas": ([0.9, 0.98], [0.9, 0.999]),
    "optimizer.adam_eps": (1e-6, 1e-8),
    "optimizer.weight_decay": (0.01, 0.0),
    "lr_scheduler.warmup_updates": (10000, 12510),
    "lr_scheduler.min_lr": (ABSENT, 1e-6),
    "model.layer_decay": (ABSENT, 0.65),
    "model.drop_path_rate": (ABSENT, 0.2),
    "model.attention_dropout": (ABSENT, 0),
    "model.pool_all_patches": (ABSENT, True),
}
# our file: {key: (theirs, ours)}
DIFFERENCES = {
    "speech/base_librispeech": BASE,
    "speech/base_audioset": BASE,
    **{f"speech/ctc_base_{split}": DECAY | NORMALIZED for split in CTC_SPLITS},
    **{f"speech/ctc_large_{split}": DECAY for split in CTC_SPLITS},
    **{f"speech/ctc_base_{split}_v2": DECAY | NORMALIZED for split in CTC_SPLITS},
    **{f"speech/ctc_large_{split}_v2": DECAY for split in CTC_SPLITS},
    "speech/ctc_base_960h_v2": DECAY | NORMALIZED | ONE_STEP,
    "speech/ctc_large_10m_v2": DECAY | EPS,
    "speech/audioset_classification": CLASSIFICATION,
    "speech/ctc_base_960h": DECAY | NORMALIZED | ONE_STEP,
    "speech/ctc_large_960h": DECAY | ONE_STEP,
    "speech/base_librispeech_v2": {"optimizer.weight_decay_overrides": (ABSENT, False)},
    "vision/base_imagenet": BEIT,
    "vision/finetune_base_imagenet_v2": EPS,
    "vision/finetune_large_imagenet_v2": EPS,
    "vision/finetune_huge_imagenet_v2": EPS,
    "vision/finetune_base_imagenet": BEIT_CLASSIFICATION,
    "vision/base_imagenet_v2": EPS,
    "vision/large_imagenet_v2": EPS,
    "vision/huge_imagenet_v2": EPS,
    "vision/huge14_imagenet_v2": EPS,
    "vision/mae_base_imagenet": {
        "optimizer.groups.with_decay.optimizer.adam_eps": (ABSENT, 1e-8),
        "optimizer.groups.no_decay.optimizer.adam_eps": (ABSENT, 1e-8),
    },
}

# fairseq's adam, which theirs name, knows of no parameter that is spared
DECAYED = {"optimizer.weight_decay_overrides": (ABSENT, False)}
DIFFERENCES |= {f"text/glue/{name}": DECAYED for name in GLUE}
# theirs are written for roberta, which has the same network and base sizes as its defaults, and know accuracy alone
BASE_TEXT = {
    "max_positions": 512,
    "head_layers": 2,
    "transformer.dropout": 0.1,
    "transformer.attention_dropout": 0.1,
    "transformer.layernorm_embedding": True,
    "transformer.activation_fn": "gelu",
    "transformer.no_scale_embedding": True,
    "transformer.max_source_positions": 512,
    "transformer.encoder.embed_dim": 768,
    "transformer.encoder.ffn_embed_dim": 3072,
    "transformer.encoder.layers": 12,
    "transformer.encoder.attention_heads": 12,
    "transformer.encoder.normalize_before": False,
    "transformer.encoder.learned_pos": True,
}
ROBERTA = DECAYED | {f"model.{key}": (ABSENT, value) for key, value in BASE_TEXT.items()}
ROBERTA |= {"model._name": ("roberta", "data2vec_text")}
ROBERTA |= {"model.dropout": (0.1, ABSENT), "model.attention_dropout": (0.1, ABSENT)}
# a run with restore_file begins again whenever it is resumed
ROBERTA |= {"checkpoint.restore_file": ("???", ABSENT), "checkpoint.finetune_from_model": (ABSENT, "pretrained.pt")}
ROBERTA |= {f"checkpoint.reset_{name}": (True, ABSENT) for name in ("optimizer", "dataloader", "meters")}
METRIC = "checkpoint.best_checkpoint_metric"
ACC_AND_F1 = {METRIC: ("accuracy", "acc_and_f1"), "criterion.report_acc_and_f1": (ABSENT, True)}
OWN_SCORES = {
    "cola": {METRIC: ("accuracy", "mcc"), "criterion.report_mcc": (ABSENT, True)},
    "mnli": {"dataset.valid_subset": (ABSENT, "valid,valid1")},
    "mrpc": ACC_AND_F1,
    "qqp": ACC_AND_F1,
    "sts_b": {
        METRIC: (ABSENT, "pearson_and_spearman"),
        "checkpoint.maximize_best_checkpoint_metric": (ABSENT, True),
        "criterion.report_pearson_and_spearman": (ABSENT, True),
    },
}
DIFFERENCES |= {f"text/glue_v1/{name}": ROBERTA | OWN_SCORES.get(name, {}) for name in GLUE}


def flat(node, prefix=""):
    """``{dotted key: value}``; lists are values."""
    if not isinstance(node, dict):
        return {prefix: node}
    out = {}
    for key, value in node.items():
        out |= flat(value, f"{prefix}.{key}" if prefix else key)
    return out or {prefix: {}}


def read(path):
    values = flat(OmegaConf.to_container(OmegaConf.load(path)))
    for key in values:
        if key.endswith("adam_betas"):
            values[key] = list(parse_betas(values[key]))
    return values


def without_groups(values):
    """A composite optimiser of one group that divides itself is what ``d2v_adamw`` does alone: the same, unwrapped."""
    groups = {key.split(".")[2] for key in values if key.startswith("optimizer.groups.")}
    if groups != {"default"} or not values.get("optimizer.dynamic_groups"):
        return values
    assert values["lr_scheduler"] == "pass_through"
    rate = values["optimizer.groups.default.lr_float"]
    assert values.get("optimization.lr", [rate]) == [rate]
    out = {key: value for key, value in values.items() if key.split(".")[0] not in ("optimizer", "lr_scheduler")}
    inside = "optimizer.groups.default."
    out |= {key.removeprefix(inside): value for key, value in values.items() if key.startswith(inside)}
    del out["lr_float"]
    return out | {"optimization.lr": [rate]}


def expected(theirs):
    """The values of theirs as ours spell them."""
    left_out = [fnmatch.translate(key) for key in LEFT_OUT]
    theirs = without_groups(theirs)
    values = {key: theirs[key] for key in theirs if not any(re.match(pattern, key) for pattern in left_out)}
    for key, value in values.items():
        if key.endswith("_name"):
            values[key] = RENAMED.get(value, value)
    if "lr_scheduler" in values:
        values["lr_scheduler._name"] = values.pop("lr_scheduler")
    return values


def recipe(path):
    """Whether a file is one, and not an option of the group ``hardware``."""
    return path.parent.name != "hardware"


def test_every_recipe_is_compared():
    files = {str(path.relative_to(EXAMPLES).with_suffix("")) for path in EXAMPLES.rglob("*.yaml") if recipe(path)}
    alone = {name for name in files if any(Path(name).match(pattern) for pattern in OURS_ALONE)}
    assert files - alone == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_the_published_ones(name):
    ours = {k: v for k, v in read(EXAMPLES / f"{name}.yaml").items() if k not in ADDED}
    theirs = expected(read(UPSTREAM / f"{PAIRS[name]}.yaml"))
    found = {
        key: (theirs.get(key, ABSENT), ours.get(key, ABSENT))
        for key in theirs.keys() | ours.keys()
        if key not in theirs or key not in ours or theirs[key] != ours[key]
    }
    assert found == DIFFERENCES.get(name, {})


# CTC fine-tuning decays nothing
FP16 = [path for path in sorted(EXAMPLES.rglob("*_v2*.yaml")) if recipe(path) and not path.stem.startswith("ctc_")]
FP16 = [path for path in FP16 if yaml.safe_load(path.read_text())["common"]["fp16"]]


@pytest.mark.parametrize("path", FP16, ids=lambda path: path.stem)
def test_each_parameter_can_have_its_own_decay(path):
    """fp16 flattens parameters into one otherwise, which has one decay."""
    raw = yaml.safe_load(path.read_text())
    asked = raw["optimizer"].get("weight_decay_overrides", True)
    assert raw["common"]["fp16_no_flatten_grads"] is asked
