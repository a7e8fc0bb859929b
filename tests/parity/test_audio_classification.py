"""``audio_classification`` against upstream's: same weights, recordings and mixtures give the same numbers."""

from unittest import mock

import fairseq.models
import pytest
import torch
import upstream
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf

from d2v_plugin.fine_tuning.waveform_mixup import Mixture
from d2v_plugin.models.audio_classification import AudioClassificationModel
from d2v_plugin.models.audio_classification_config import AudioClassificationConfig
from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig
from d2v_plugin.register import register_plugin

CLASSES = 7
BODY = {
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 2 + [(16, 2, 2)]",
    "conv_pos": 19,
    "pos_conv_depth": 3,
    "conv_pos_groups": 4,
    "average_top_k_layers": 2,
    "extractor_mode": "layer_norm",
    "required_seq_len_multiple": 1,
    "ema_anneal_end_step": 30,
    "max_update": 100,
}
HISTORY = {"num_updates": 7, "criterion_name": "c", "optimizer_name": "o", "lr_scheduler_state": {"best": None}}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A checkpoint as upstream's trainer writes it of upstream's model."""
    register_plugin()
    module = upstream.load("data2vec_audio")
    torch.manual_seed(3)
    model = module.Data2VecAudioModel(module.Data2VecAudioConfig(**BODY))
    model.set_num_updates(0)
    cfg = OmegaConf.to_container(OmegaConf.structured(Data2VecAudioConfig), resolve=False, enum_to_str=True)
    cfg = {key: value for key, value in cfg.items() if not str(value).startswith("${")} | BODY
    folder = tmp_path_factory.mktemp("upstream")
    state = {
        "cfg": {
            "model": cfg | {"_name": "data2vec_audio"},
            "task": {"_name": "audio_pretraining", "data": str(folder), "normalize": True},
            "criterion": {"_name": "model"},
        },
        "args": None,
        "model": model.state_dict(),
        "optimizer_history": [HISTORY],
        "extra_state": {"train_iterator": {"epoch": 2}, "val_loss": None},
        "task_state": {},
    }
    torch.save(state, folder / "upstream.pt")
    return folder / "upstream.pt"


def settings(config, path, **fields):
    values = {"model_path": str(path), "normalize": True, "data": str(path.parent), "ddp_backend": "legacy_ddp"}
    root = OmegaConf.create({"model": {**values, "feature_grad_mult": 1.0, **fields}})
    return merge_with_parent(config(), root.model)


def pair(path, **fields):
    """(upstream's model with upstream's body, ours) with the same weights, in training mode."""
    classification, pretraining = (upstream.load(name) for name in ("audio_classification", "data2vec_audio"))
    own = {"data2vec_audio": pretraining.Data2VecAudioModel}
    torch.manual_seed(1)
    with (
        mock.patch.dict(fairseq.models.MODEL_REGISTRY, own),
        mock.patch.dict(fairseq.models.ARCH_MODEL_REGISTRY, own),
    ):
        cfg = settings(classification.AudioClassificationConfig, path, **fields)
        theirs = classification.AudioClassificationModel(cfg, CLASSES)
    assert type(theirs.d2v_model) is pretraining.Data2VecAudioModel
    ours = AudioClassificationModel(settings(AudioClassificationConfig, path, **fields), CLASSES)
    for name, value in theirs.d2v_model.state_dict().items():
        torch.testing.assert_close(ours.d2v_model.state_dict()[name], value, rtol=0, atol=0)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs.train(), ours.train()


def batch(B=4, samples=3000, padded=True):
    source = torch.randn(B, samples) * torch.linspace(0.2, 2, B)[:, None]
    padding_mask = torch.zeros(B, samples, dtype=torch.bool)
    if padded:
        padding_mask[1, 2200:] = padding_mask[3, 1500:] = True
        source = source.masked_fill(padding_mask, 0)
    label = (torch.rand(B, CLASSES) < 0.4).float()
    label[:, 0] = 1
    return source, padding_mask, label


def assert_same(found, expected, name):
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    assert error < 1e-5, (name, error)


def assert_same_step(theirs, ours, source, padding_mask, label, seed=None, **ours_only):
    results, grads = [], []
    for model, more in ((theirs, {}), (ours, ours_only)):
        if seed is not None:
            torch.manual_seed(seed)
        result = model(source.clone(), padding_mask.clone(), label.clone(), **more)
        model.zero_grad()
        (result["losses"]["main"].sum() * 0.37).backward()
        results.append(result)
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected, found = results
    assert found["losses"].keys() == expected["losses"].keys() == {"main"}
    assert found["losses"]["main"].shape == expected["losses"]["main"].shape == label.shape
    assert_same(found["losses"]["main"], expected["losses"]["main"], "loss")
    assert_same(found["sample_size"], expected["sample_size"], "sample_size")
    assert grads[0].keys() == grads[1].keys()
    whole = torch.cat([g.flatten() for g in grads[0].values()]).norm()
    assert whole > 0
    for name, grad in grads[0].items():
        if grad.norm() < 1e-6 * whole:
            # softmax does not see a constant added to its input
            assert name.endswith("k_proj.bias"), name
        else:
            assert_same(grads[1][name], grad, name)


HEADS = {
    "lin_softmax": {},
    "extremized_odds": {"extreme_factor": 0.3},
    "average_before": {},
    "average": {},
    "average_sigmoid": {},
    "max": {},
    "max_sigmoid": {},
    "proj_avg_proj": {},
    "cls": {},
    "convolution": {"prediction_mode": "lin_softmax", "conv_kernel": 5, "conv_stride": 2},
    "two_layers": {"prediction_mode": "average", "conv_kernel": 1, "two_convs": True},
}


@pytest.mark.parametrize("head", HEADS)
def test_scores_loss_and_gradients(pretrained, head):
    theirs, ours = pair(pretrained, **{"prediction_mode": head, **HEADS[head]})
    source, padding_mask, label = batch()
    assert_same_step(theirs, ours, source, padding_mask, label)
    theirs.eval(), ours.eval()
    with torch.no_grad():
        expected, found = (m(source.clone(), padding_mask, label.clone()) for m in (theirs, ours))
        for key in ("_predictions", "_targets"):
            assert_same(found[key], expected[key], key)
        assert_same(ours(source, padding_mask), theirs(source.clone(), padding_mask), "scores without labels")


def test_another_head_in_validation(pretrained):
    theirs, ours = pair(pretrained, prediction_mode="average", eval_prediction_mode="max")
    source, padding_mask, _ = batch()
    for training in (True, False):
        theirs.train(training), ours.train(training)
        assert_same(ours(source, padding_mask), theirs(source.clone(), padding_mask), training)


def drawn_by_upstream(B, seed, mixup_prob, lowest, same):
    """The numbers that its forward draws first, in its order, as ours takes them."""
    torch.manual_seed(seed)
    chosen = torch.ones(B, dtype=torch.bool)
    if mixup_prob < 1:
        chosen = torch.empty(B).bernoulli_(mixup_prob).bool()
    ratio = torch.ones(B)
    ratio[chosen] = torch.empty(1 if same else int(chosen.sum())).uniform_(max(1e-6, lowest), 1)
    return Mixture(ratio, torch.randperm(B))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("mixup_prob", [1.0, 0.6])
@pytest.mark.parametrize("gain_mode", ["none", "naive_rms", "RMSE", "A_weighting"])
def test_mixtures(pretrained, gain_mode, mixup_prob, same):
    fields = {"source_mixup": 0.3, "label_mixup": True, "gain_mode": gain_mode}
    theirs, ours = pair(pretrained, **fields, mixup_prob=mixup_prob, same_mixup=same)
    source, padding_mask, label = batch(B=6)
    mixture = drawn_by_upstream(6, 5, mixup_prob, 0.3, same)
    assert (mixture.ratio < 1).any() and (mixup_prob == 1) == bool((mixture.ratio < 1).all())
    assert_same_step(theirs, ours, source, padding_mask, label, seed=5, mixture=mixture)


def test_fields_and_defaults_are_upstreams():
    theirs = OmegaConf.to_container(
        OmegaConf.structured(upstream.load("audio_classification").AudioClassificationConfig)
    )
    ours = OmegaConf.to_container(OmegaConf.structured(AudioClassificationConfig))
    assert {key: ours[key] for key in theirs} == theirs


def test_state_dicts_have_the_same_keys_in_the_same_order(pretrained):
    """The order decides which state of an optimiser belongs to which parameter."""
    for head in ("lin_softmax", "proj_avg_proj"):
        theirs, ours = pair(pretrained, prediction_mode=head)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
        groups = [[p.param_group for p in model.parameters()] for model in (theirs, ours)]
        assert groups[0] == groups[1]
