"""Every setting of fairseq's ``wav2vec_ctc`` has its effect on our models inside it, in both versions."""

import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import upstream
from fairseq.criterions.ctc import CtcCriterion, CtcCriterionConfig
from fairseq.data import Dictionary
from fairseq.dataclass.utils import merge_with_parent
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc
from omegaconf import OmegaConf
from tiny_multi import root_config

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v_plugin.register import register_plugin

TASK = {"_name": "d2v_audio_pretraining", "data": "/not/on/this/machine", "normalize": True}
TINY = {
    "encoder_layers": 3,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 3",
    "extractor_mode": "layer_norm",
    "conv_pos": 9,
    "conv_pos_groups": 4,
    "pos_conv_depth": 2,
    "average_top_k_layers": 2,
    "required_seq_len_multiple": 1,
    "ema_anneal_end_step": 10,
    "max_update": 10,
}
ALIBI = {"use_alibi_encoder": True, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True}
# what pre-training had and fine-tuning must not have
PRETRAINING = {"inverse_mask": True, "mask_prob": 0.9, "mask_prob_min": 0.1, "mask_noise_std": 3.0}
HISTORY = {"num_updates": 7, "criterion_name": "c", "optimizer_name": "o", "lr_scheduler_state": {"best": None}}
versions = pytest.mark.parametrize("version", [1, 2])


def audio_config():
    cfg = OmegaConf.to_container(OmegaConf.structured(Data2VecAudioConfig), resolve=False, enum_to_str=True)
    return {k: v for k, v in cfg.items() if not str(v).startswith("${")} | TINY | {"_name": "data2vec_audio"}


def write_audio(path, kind, config):
    torch.manual_seed(1)
    model = kind(config(**TINY))
    model.set_num_updates(0)
    return write(path, model, {"model": audio_config()})


def write_multi(path, kind, config, **overrides):
    root = root_config("AUDIO", every=ALIBI | PRETRAINING, **overrides)
    torch.manual_seed(1)
    model = kind.build_model(merge_with_parent(config(), root.model), SimpleNamespace(source_dictionary=None))
    with torch.no_grad():  # scales that start alike would hide which one is used
        model.modality_encoders["AUDIO"].alibi_scale.uniform_(0.5, 2)
    return write(path, model, OmegaConf.to_container(root, resolve=True))


def write(path, model, cfg, task=TASK):
    state = {"cfg": {**cfg, "task": dict(task), "criterion": {"_name": "model"}}, "args": None}
    state |= {"model": model.state_dict(), "optimizer_history": [HISTORY], "task_state": {}}
    state |= {"extra_state": {"train_iterator": {"epoch": 2}, "val_loss": None}}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of both versions, written by ours; under "upstream" those of upstream's models."""
    from d2v_plugin.models.data2vec_multi import Data2VecMultiModel
    from d2v_plugin.models.data2vec_multi_config import Data2VecMultiConfig

    register_plugin()
    folder = tmp_path_factory.mktemp("pretrained")
    first, second = upstream.load("data2vec_audio"), upstream.load_v2("models.data2vec2")
    with upstream.current_stack():
        theirs = {
            1: write_audio(folder / "u1.pt", first.Data2VecAudioModel, first.Data2VecAudioConfig),
            2: write_multi(folder / "u2.pt", second.Data2VecMultiModel, second.Data2VecMultiConfig),
        }
    return {
        1: write_audio(folder / "1.pt", Data2VecAudioModel, Data2VecAudioConfig),
        2: write_multi(folder / "2.pt", Data2VecMultiModel, Data2VecMultiConfig),
        "upstream": theirs,
    }


def ctc(path, **fields):
    """A model as fairseq builds it for fine-tuning, in training mode."""
    letters = Dictionary()
    for letter in "|ABC":
        letters.add_symbol(letter)
    values = {"w2v_path": str(path), "normalize": True, "data": str(path.parent), "ddp_backend": "legacy_ddp"}
    values |= {"mask_channel_length": 4, "mask_length": 3, "feature_grad_mult": 1.0}
    root = OmegaConf.create({"model": {**values, **fields}})
    cfg = merge_with_parent(Wav2Vec2CtcConfig(), root.model)
    torch.manual_seed(2)  # of the head
    model = Wav2VecCtc.build_model(cfg, SimpleNamespace(target_dictionary=letters))
    model.set_num_updates(1)
    return model.train()


def batch():
    source = torch.randn(3, 2000, generator=torch.Generator().manual_seed(7))
    padding_mask = torch.zeros(3, 2000, dtype=torch.bool)
    padding_mask[2, 1500:] = True
    return {"source": source.masked_fill(padding_mask, 0), "padding_mask": padding_mask}


def outputs(model, seeds=(1, 2, 3)):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(model(**batch())["encoder_out"])
    return found


def varies(model):
    """Whether passes that differ in nothing but the seed differ in their result."""
    first, *others = outputs(model)
    return not all(torch.equal(first, other) for other in others)


MASK = {"apply_mask": True, "mask_prob": 0.0}
RANDOM = {
    "dropout": {"dropout": 0.5},
    "attention_dropout": {"attention_dropout": 0.5},
    "activation_dropout": {"activation_dropout": 0.5},
    "dropout_input": {"dropout_input": 0.5},
    "final_dropout": {"final_dropout": 0.5},
    "layerdrop": {"layerdrop": 0.5},
    "mask_prob": {"apply_mask": True, "mask_prob": 0.5},
    "mask_channel_prob": {**MASK, "mask_channel_prob": 0.5},
}


@versions
def test_without_any_of_them_nothing_is_random(checkpoints, version):
    assert not varies(ctc(checkpoints[version]))
    assert not varies(ctc(checkpoints[version], **MASK))
    # masks wait for apply_mask
    assert not varies(ctc(checkpoints[version], mask_prob=0.5, mask_channel_prob=0.5))


@versions
@pytest.mark.parametrize("setting", RANDOM)
def test_each_one_alone_reaches_training_and_not_evaluation(checkpoints, version, setting):
    model = ctc(checkpoints[version], **RANDOM[setting])
    assert varies(model)
    assert not varies(model.eval())
    torch.testing.assert_close(outputs(model)[0], outputs(ctc(checkpoints[version]).eval())[0], rtol=0, atol=0)


def test_drop_path_of_2_grows_over_its_own_and_the_shared_blocks(checkpoints):
    model = ctc(checkpoints[2], drop_path=0.3)
    assert varies(model)
    body = model.w2v_encoder.w2v_model
    blocks = [*body.modality_encoders["AUDIO"].context_encoder.blocks, *body.blocks]
    assert [round(block.drop_path.p, 6) for block in blocks] == [0.0, 0.1, 0.2, 0.3]


@versions
def test_layerdrop_of_1_leaves_no_block(checkpoints, version):
    model = ctc(checkpoints[version], layerdrop=1.0)
    before = outputs(model)[0]
    body = model.w2v_encoder.w2v_model
    stacks = (
        [body.encoder.layers] if version == 1 else [body.blocks, body.modality_encoders["AUDIO"].context_encoder.blocks]
    )
    with torch.no_grad():
        for parameter in (p for stack in stacks for p in stack.parameters()):
            parameter.zero_()
    assert torch.equal(outputs(model)[0], before)
    assert not torch.equal(outputs(model.eval())[0], before)


def masked_share(model):
    """Of the frames that are not padding, in one pass of training."""
    body, seen = model.w2v_encoder.w2v_model, []
    torch.manual_seed(1)
    if hasattr(body, "modality_encoders"):
        found = body(**batch(), mode="AUDIO", mask=True, features_only=True)
        seen = found["mask"].mask
        padding = found["padding_mask"]
    else:
        original = body.apply_mask
        body.apply_mask = lambda *args, **kwargs: seen.append(original(*args, **kwargs)) or seen[-1]
        padding = body(**batch(), mask=True, features_only=True)["padding_mask"]
        seen = seen[0][1]
    assert not (seen & padding).any()
    return float(seen.sum() / (~padding).sum())


@versions
def test_masks_are_those_of_fine_tuning(checkpoints, version):
    few, many = (masked_share(ctc(checkpoints[version], mask_prob=prob)) for prob in (0.15, 0.9))
    assert 0.02 < few < 0.25 and 0.4 < many < 0.9
    # longer spans overlap less at the same share
    assert masked_share(ctc(checkpoints[version], mask_prob=0.5, mask_length=20)) > 0
    shown = masked_share(ctc(checkpoints[version], mask_prob=0.9, mask_dropout=0.5))
    assert shown < 0.7 * many


def test_settings_of_masks_stand_where_2_reads_them(checkpoints):
    fields = {"mask_prob": 0.4, "mask_length": 6, "mask_dropout": 0.1, "mask_channel_prob": 0.2}
    fields |= {"mask_channel_length": 5, "zero_mask": True}
    audio = ctc(checkpoints[2], **fields).w2v_encoder.w2v_model.modality_encoders["AUDIO"].modality_cfg
    zero = fields.pop("zero_mask")
    assert {key: audio[key] for key in fields} == fields
    assert audio.encoder_zero_mask is zero and audio.inverse_mask is False and audio.mask_prob_min is None


@pytest.mark.parametrize("zero", [True, False])
def test_masked_frames_of_2_are_zeros_or_noise(checkpoints, zero):
    model = ctc(checkpoints[2], apply_mask=True, mask_prob=0.8, zero_mask=zero)
    encoder = model.w2v_encoder.w2v_model.modality_encoders["AUDIO"]
    seen = []
    original = encoder._hide
    encoder._hide = lambda x, masked, *more: seen.append((original(x, masked, *more), masked.mask)) or seen[-1][0]
    outputs(model, seeds=[1])
    hidden, mask = seen[0]
    assert bool((hidden[mask] == 0).all()) is zero


def gradients(model, update=1):
    model.zero_grad()
    model.set_num_updates(update)
    torch.manual_seed(1)
    model(**batch())["encoder_out"].pow(2).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@versions
def test_the_extractors_gradient_is_scaled(checkpoints, version):
    whole, half, none = (gradients(ctc(checkpoints[version], feature_grad_mult=g)) for g in (1.0, 0.5, 0.0))
    own = "feature_extractor." if version == 1 else "local_encoder."
    names = [name for name in whole if own in name]
    assert names and not any(own in name for name in none)
    for name in names:
        torch.testing.assert_close(half[name], 0.5 * whole[name])
    name = "w2v_encoder.proj.weight"
    torch.testing.assert_close(half[name], whole[name])


@versions
def test_the_body_waits_for_freeze_finetune_updates(checkpoints, version):
    model = ctc(checkpoints[version], freeze_finetune_updates=5)
    assert gradients(model, update=4).keys() == {"w2v_encoder.proj.weight", "w2v_encoder.proj.bias"}
    assert len(gradients(model, update=5)) > 20


@pytest.mark.parametrize("learn", [True, False])
def test_the_alibi_scales_of_2_learn_if_wanted(checkpoints, learn):
    model = ctc(checkpoints[2], update_alibi=learn)
    name = "w2v_encoder.w2v_model.modality_encoders.AUDIO.alibi_scale"
    assert dict(model.named_parameters())[name].requires_grad is learn
    assert (name in gradients(model)) is learn


def test_layer_decay_of_2_asks_for_rates(checkpoints):
    model = ctc(checkpoints[2], layer_decay=0.5)
    body = model.w2v_encoder.w2v_model
    blocks = [*body.modality_encoders["AUDIO"].context_encoder.blocks, *body.blocks]
    rates = [{p.optim_overrides["optimizer"].get("lr_scale") for p in block.parameters()} for block in blocks]
    assert rates == [{0.5**4}, {0.5**3}, {0.5**2}, {0.5}]
    # what they asked for before is still asked for
    assert blocks[0].norm1.weight.optim_overrides["optimizer"]["weight_decay_scale"] == 0


@versions
def test_from_upstreams_checkpoint_the_output_is_that_of_upstreams_model(checkpoints, version):
    found = ctc(checkpoints["upstream"][version], apply_mask=True).eval()
    state = read_checkpoint(checkpoints["upstream"][version], mmap=False)
    body = found.w2v_encoder.w2v_model
    assert type(body).__module__.startswith("d2v_plugin.models")
    own = body.state_dict()
    assert not any(name.startswith(("_ema", "final_proj")) or ".decoder." in name for name in own)
    for name, value in own.items():
        torch.testing.assert_close(value, state["model"][name], rtol=0, atol=0)
    with upstream.current_stack():
        module = upstream.load("data2vec_audio") if version == 1 else upstream.load_v2("models.data2vec2")
        if version == 1:
            theirs = module.Data2VecAudioModel(module.Data2VecAudioConfig(**TINY))
        else:
            cfg = OmegaConf.create(state["cfg"])
            cfg = merge_with_parent(module.Data2VecMultiConfig(), cfg.model)
            theirs = module.Data2VecMultiModel.build_model(cfg, SimpleNamespace(source_dictionary=None))
    theirs.set_num_updates(0)  # makes the teacher that the file has, too
    theirs.load_state_dict(state["model"])
    inputs = batch()
    mode = {"mode": "AUDIO"} if version == 2 else {}
    with torch.no_grad():
        expected = theirs.eval().extract_features(**inputs, mask=False, **mode)["x"]
        expected = found.w2v_encoder.proj(expected.transpose(0, 1))
        keep = ~found(**inputs)["padding_mask"].T
        torch.testing.assert_close(found(**inputs)["encoder_out"][keep], expected[keep], rtol=1e-5, atol=1e-5)


@versions
def test_a_checkpoint_normalised_otherwise_is_one_line(checkpoints, version, tmp_path):
    with pytest.raises(UserError, match=r"task\.normalize=False differs .* set task\.normalize=True"):
        ctc(checkpoints[version], normalize=False)
    state = read_checkpoint(checkpoints[version], mmap=False)
    state["cfg"]["task"]["normalize"] = False
    torch.save(state, tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"task\.normalize=True differs .* set task\.normalize=False") as caught:
        ctc(tmp_path / "plain.pt")
    assert "\n" not in str(caught.value)
    # fairseq alone takes no 2.0 model that was pre-trained so
    model = ctc(tmp_path / "plain.pt", normalize=False)
    assert torch.equal(outputs(model.eval())[0], outputs(ctc(checkpoints[version]).eval())[0])


def test_settings_of_the_other_version_are_one_line(checkpoints):
    with pytest.raises(UserError, match="layer_decay is for data2vec 2.0"):
        ctc(checkpoints[1], layer_decay=0.5)
    with pytest.raises(UserError, match="load_ema is for data2vec 1.0"):
        ctc(checkpoints[2], load_ema=True)


def test_load_ema_takes_the_teachers_blocks(checkpoints, tmp_path):
    state = read_checkpoint(checkpoints[1], mmap=False)
    for value in state["model"]["_ema"].values():
        value.add_(1)
    torch.save(state, tmp_path / "moved.pt")
    layers = ctc(tmp_path / "moved.pt", load_ema=True).w2v_encoder.w2v_model.encoder.layers.state_dict()
    for name, value in layers.items():
        torch.testing.assert_close(value, state["model"]["_ema"][f"layers.{name}"])


def test_another_kind_of_checkpoint_is_one_line(checkpoints, tmp_path):
    state = read_checkpoint(checkpoints[2], mmap=False)
    state["cfg"]["model"]["supported_modality"] = "IMAGE"
    torch.save(state, tmp_path / "image.pt")
    with pytest.raises(UserError, match=r"image\.pt was trained on IMAGE; this needs a model of AUDIO"):
        ctc(tmp_path / "image.pt")
    state["cfg"]["model"]["_name"] = "mae"
    torch.save(state, tmp_path / "mae.pt")
    with pytest.raises(UserError, match="holds a mae, which is not a pre-trained speech model"):
        ctc(tmp_path / "mae.pt")


def test_a_language_model_in_validation_that_fairseq_cannot_use_is_one_line(tmp_path):
    def refused(match, **files):
        cfg = OmegaConf.structured(CtcCriterionConfig(sentence_avg=True, **files))
        with pytest.raises(UserError, match=match) as caught:
            CtcCriterion(cfg, SimpleNamespace(target_dictionary=Dictionary()))
        assert "\n" not in str(caught.value) and "criterion.wer_kenlm_model=null" in str(caught.value)

    register_plugin()
    refused(r"criterion\.wer_kenlm_model=gone\.bin does not exist", wer_kenlm_model="gone.bin")
    model, lexicon = tmp_path / "4gram.bin", tmp_path / "lexicon.txt"
    model.touch(), lexicon.touch()
    refused(r"wer_lexicon=gone\.txt does not exist", wer_kenlm_model=str(model), wer_lexicon="gone.txt")
    with mock.patch.dict(sys.modules, {"examples.speech_recognition.w2l_decoder": None}):
        files = {"wer_kenlm_model": str(model), "wer_lexicon": str(lexicon)}
        refused("wer_kenlm_model needs a decoder that is not installed", **files)
