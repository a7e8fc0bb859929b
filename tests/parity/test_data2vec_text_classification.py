"""Against upstream: the same weights and sentences give the same logits, loss and gradients."""

import dataclasses
import inspect
from types import SimpleNamespace

import pytest
import tiny_glue
import torch
import upstream
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from omegaconf import OmegaConf

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.criterions.d2v_sentence_prediction import D2vSentencePredictionConfig, D2vSentencePredictionCriterion
from d2v_plugin.models.data2vec_text_classification import (
    Data2VecTextClassificationConfig,
    Data2VecTextClassificationModel,
)

HEAD = "sentence_classification_head"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with a dictionary, and upstream's checkpoint of pre-training beside it."""
    folder = tmp_path_factory.mktemp("text")
    rows = "".join(f"w{n} 1\n" for n in range(tiny_glue.PIECES - 4))
    (folder / "dict.txt").write_text(rows)
    torch.manual_seed(3)
    tiny_glue.upstream_v2(folder, folder / "upstream.pt")
    return folder


def theirs_of(text, classes, **settings):
    """Upstream's classifier; its pre-training is set up by a task of its own, which stands in here."""
    module = upstream.load_v2("models.data2vec_text_classification")
    v2 = upstream.load_v2("models.data2vec2")
    cfg = module.Data2VecTextClassificationConfig(model_path=str(text / "upstream.pt"), **settings)
    task = SimpleNamespace(source_dictionary=tiny_glue.dictionary_of(text))

    def build(model_cfg, from_checkpoint):
        return v2.Data2VecMultiModel.build_model(OmegaConf.merge(v2.Data2VecMultiConfig(), model_cfg), task)

    with pytest.MonkeyPatch.context() as patch, upstream.current_stack():
        patch.setattr(module.tasks, "setup_task", lambda cfg: SimpleNamespace(build_model=build))
        patch.setattr(module.checkpoint_utils, "load_checkpoint_to_cpu", lambda path, _: read(path))
        model = module.Data2VecTextClassificationModel.build_model(cfg)
    model.register_classification_head(HEAD, num_classes=classes)
    return model


def read(path):
    state = read_checkpoint(path)
    state["cfg"] = OmegaConf.create(state["cfg"])
    return state


def pair(text, classes, **settings):
    theirs = theirs_of(text, classes, **settings)
    cfg = OmegaConf.structured(Data2VecTextClassificationConfig)
    cfg = OmegaConf.merge(cfg, {"model_path": str(text / "upstream.pt"), **settings})
    task = SimpleNamespace(source_dictionary=tiny_glue.dictionary_of(text))
    ours = Data2VecTextClassificationModel.build_model(cfg, task)
    ours.register_classification_head(HEAD, num_classes=classes)
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name  # loaded from the file by each
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def batch(classes):
    source = torch.randint(4, tiny_glue.PIECES, (5, 30))
    source[:, 0] = 0
    lengths = torch.tensor([30, 12, 25, 5, 18])
    padding_mask = torch.arange(30) >= lengths[:, None]
    source[padding_mask] = 1
    target = torch.rand(5, 1) if classes == 1 else torch.randint(0, classes, (5, 1))
    net_input = {"source": source, "id": torch.arange(5), "padding_mask": padding_mask}
    return {"net_input": net_input, "target": target, "ntokens": int(lengths.sum()), "nsentences": 5}


def criterion(kind, config, classes):
    task = SimpleNamespace(target_dictionary=None, label_dictionary=None, cfg=SimpleNamespace(num_classes=classes))
    return kind(config(regression_target=classes == 1), task)


@pytest.mark.parametrize("settings", [{}, {"pooler_activation_fn": "gelu"}], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_logits_loss_and_every_gradient(text, classes, settings):
    theirs, ours = pair(text, classes, **settings)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    sample, found = batch(classes), {}
    kinds = {
        theirs: (SentencePredictionCriterion, SentencePredictionConfig),
        ours: (D2vSentencePredictionCriterion, D2vSentencePredictionConfig),
    }
    for model, parts in kinds.items():
        model.train()  # no dropout in this configuration but that of the embedding
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        logits, _ = model(**sample["net_input"], classification_head_name=HEAD)
        loss, size, log = criterion(*parts, classes)(model, sample)
        (loss * 0.37).backward()
        assert size == 5
        found[model] = logits, loss, log
    expected, out = found[theirs], found[ours]
    torch.testing.assert_close(out[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[1], expected[1], rtol=1e-5, atol=0)
    assert out[2].get("ncorrect") == expected[2].get("ncorrect")
    gradients = dict(theirs.named_parameters())
    whole = torch.cat([p.grad.flatten() for p in gradients.values() if p.grad is not None]).norm()
    for name, parameter in ours.named_parameters():
        gradient = gradients[name].grad
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            assert (parameter.grad - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-4 * whole), name


def test_upstreams_fields_and_arguments():
    module = upstream.load_v2("models.data2vec_text_classification")
    ours = {field.name: field.default for field in dataclasses.fields(Data2VecTextClassificationConfig)}
    for field in dataclasses.fields(module.Data2VecTextClassificationConfig):
        assert ours[field.name] == field.default, field.name
    for name in ("forward", "register_classification_head"):
        theirs = getattr(module.Data2VecTextClassificationModel, name)
        found = inspect.signature(getattr(Data2VecTextClassificationModel, name)).parameters
        assert list(found) == list(inspect.signature(theirs).parameters)
