"""1.0 text against upstream: same weights and tokens give the same numbers and gradients."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import upstream
from fairseq.criterions.model_criterion import ModelCriterion
from tiny_multi import text_task
from tiny_text import MASK, PAD, WORDS, batch, build, root_config

# upstream's own way to call state_dict
pytestmark = pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning")

PRE_NORM = {"transformer__encoder__normalize_before": True}
# upstream's reference to another part of the configuration leads nowhere under this model
DECODER = {"transformer__decoder__input_dim": 8, "transformer__decoder__output_dim": 8}


def pair(**overrides):
    """(upstream's model, ours) with the same weights and a teacher that differs from the student."""
    oracle = upstream.load("data2vec_text")
    task = text_task(WORDS)
    task.cfg = SimpleNamespace(data=None)
    root = root_config(**overrides)
    torch.manual_seed(1)
    theirs = build(root_config(**overrides, **DECODER), task, oracle.Data2VecTextModel, oracle.Data2VecTextConfig)
    theirs.encoder.target_model = None  # it asks for this one, which it does not have, when it loads
    ours = build(root, task)
    with torch.no_grad():
        for p in theirs.parameters():  # weights as small as they start make gradients of the attention vanish
            p.add_(0.2 * torch.randn_like(p))
    theirs.set_num_updates(0), ours.set_num_updates(0)
    with torch.no_grad():
        for name, value in theirs.encoder.ema.fp32_params.items():
            if name not in theirs.encoder.ema.skip_keys and name != "version":
                value.add_(0.05 * torch.randn_like(value))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def loss_and_grads(model, tokens, text):
    out = model(src_tokens=tokens, target_tokens=text, src_lengths=None, src_id=None)
    model.zero_grad()
    (out["losses"]["main"] * 0.37).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


def assert_same_step(theirs, ours, tokens, text):
    expected, expected_grads = loss_and_grads(theirs, tokens, text)
    out, grads = loss_and_grads(ours, tokens, text)
    assert out["sample_size"] == expected["sample_size"] == int((tokens == MASK).sum())
    assert out["losses"].keys() == expected["losses"].keys()
    assert relative(out["losses"]["main"], expected["losses"]["main"]) < 1e-5
    assert out["logs"]["ema_decay"] == pytest.approx(expected["logs"]["ema_decay"])
    assert grads.keys() == expected_grads.keys()
    whole = torch.cat([g.flatten() for g in expected_grads.values()]).norm()
    for name, grad in expected_grads.items():
        if grad.norm() < 1e-6 * whole:
            # softmax does not see a constant added to its inputs
            assert name.endswith("k_proj.bias"), name
            assert max(grads[name].norm(), grad.norm()) < 1e-5 * whole, name
        else:
            assert relative(grads[name], grad) < 1e-5, (name, relative(grads[name], grad))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("head_layers", [1, 2, 3])
@pytest.mark.parametrize("loss_beta", [0, 0.25])
def test_features_loss_and_every_gradient(normalize_before, head_layers, loss_beta, padded):
    theirs, ours = pair(
        head_layers=head_layers, loss_beta=loss_beta, transformer__encoder__normalize_before=normalize_before
    )
    theirs.eval(), ours.eval()
    tokens, text = batch(padded=padded)
    expected, more = theirs(tokens, features_only=True, return_all_hiddens=True)
    features, extra = ours(tokens, features_only=True, return_all_hiddens=True)
    assert relative(features, expected) < 1e-5
    assert extra.keys() == more.keys()
    assert relative(extra["encoder_embedding"], more["encoder_embedding"]) < 1e-5
    for ours_state, theirs_state in zip(extra["inner_states"], more["inner_states"], strict=True):
        assert relative(ours_state, theirs_state) < 1e-5
    assert ours(tokens, features_only=True)[1]["inner_states"] is None
    assert_same_step(theirs, ours, tokens, text)


FLAGS = (
    "instance_norm_target_layer",
    "batch_norm_target_layer",
    "layer_norm_target_layer",
    "layer_norm_targets",
    "instance_norm_targets",
)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("flags", [c for n in range(6) for c in itertools.combinations(FLAGS, n)], ids="+".join)
def test_every_target_normalisation(flags, padded):
    theirs, ours = pair(**{f: f in flags for f in FLAGS})
    theirs.eval(), ours.eval()
    tokens, text = batch(padded=padded)
    with torch.no_grad():
        expected, out = theirs(tokens, text), ours(tokens, text)
        kept = {}
        regress = ours.encoder._regress
        ours.encoder._regress = lambda pred, targets: kept.update(targets=targets) or regress(pred, targets)
        ours(tokens, text)
        # squared error against nothing: what is left of the loss is the targets
        theirs.encoder.cfg.loss_beta, theirs.encoder.regression_head = 0, torch.nn.Module()
        theirs.encoder.regression_head.forward = torch.zeros_like
        squares = theirs(tokens, text)["losses"]["main"]
    assert relative(out["losses"]["main"], expected["losses"]["main"]) < 1e-5
    assert relative(kept["targets"].square().sum(), squares) < 1e-5


OTHERS = [
    {"ema_transformer_layers_only": False},
    {"loss_scale": 0},
    {"loss_scale": -1},
    {"loss_scale": 0.5},
    {"average_top_k_layers": 1},
    {"average_top_k_layers": 3},
    {"transformer__activation_fn": "relu"},
    {"transformer__layernorm_embedding": False},
    {"transformer__no_scale_embedding": False},
    {"transformer__encoder__learned_pos": False},
    {"transformer__checkpoint_activations": True, **PRE_NORM},
]


@pytest.mark.parametrize("overrides", OTHERS, ids=str)
def test_other_settings(overrides):
    theirs, ours = pair(**overrides)
    assert_same_step(theirs, ours, *batch(padded=True))


def test_the_teacher_reads_the_text_where_fairseqs_task_leaves_it_out():
    """``masked_lm`` hands over padding wherever nothing is masked, so upstream's teacher reads the gaps alone."""
    theirs, ours = pair()
    tokens, text = batch(padded=True)
    gaps = text.masked_fill(tokens != MASK, PAD)
    expected = theirs(tokens, text)["losses"]["main"]
    assert relative(ours(tokens, gaps)["losses"]["main"], expected) < 1e-5
    assert relative(theirs(tokens, gaps)["losses"]["main"], expected) > 1e-2


def test_vectors_may_stand_in_for_tokens():
    theirs, ours = pair()
    tokens, _ = batch(padded=True)
    vectors = torch.randn(3, 30, 24)
    expected = theirs.encoder.extract_features(tokens, token_embeddings=vectors)[0]
    assert relative(ours.encoder.extract_features(tokens, token_embeddings=vectors)[0], expected) < 1e-5


def train(model, updates, tokens, text):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    for update in range(1, updates + 1):
        loss = model(src_tokens=tokens, target_tokens=text)["losses"]["main"] / int((tokens == MASK).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.set_num_updates(update)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("overrides", [{}, PRE_NORM], ids=str)
def test_losses_over_20_optimiser_steps(overrides):
    theirs, ours = pair(**overrides)
    tokens, text = batch(padded=True)
    expected, losses = train(theirs, 20, tokens, text), train(ours, 20, tokens, text)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


SCOPES = [{}, PRE_NORM, {"ema_transformer_layers_only": False}, {"transformer__encoder__learned_pos": False}]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_ema_after_50_updates_with_annealing(scope):
    theirs, ours = pair(**scope)
    theirs.train(), ours.train()
    for update in range(1, 51):
        with torch.no_grad():
            for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
                step = 0.01 * torch.randn_like(a)
                a.add_(step), b.add_(step)
        theirs.set_num_updates(update), ours.set_num_updates(update)
        assert ours.encoder.ema.decay == pytest.approx(theirs.encoder.ema.get_decay(), abs=1e-12)
    teacher, student = theirs.encoder.ema.fp32_params, theirs.encoder.sentence_encoder.state_dict()
    assert ours.encoder.ema.fp32.keys() == teacher.keys()
    moved = 0
    for name, value in teacher.items():
        assert relative(ours.encoder.ema.fp32[name], value) < 1e-6, name
        assert relative(ours.encoder.ema.model.state_dict()[name], value) < 1e-6, name
        moved += float((student[name] - value).norm()) > 0
    assert moved > 10


@pytest.mark.parametrize("scope", [{}, PRE_NORM, {"head_layers": 1}], ids=str)
def test_state_dict_round_trip_both_ways(scope):
    theirs, ours = pair(**scope)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(ours.state_dict()["encoder._ema"]) == list(theirs.state_dict()["encoder._ema"])
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for p in ours.encoder.ema.fp32.values():
            p.add_(0.1 * torch.randn_like(p))
    theirs.load_state_dict(ours.state_dict())
    theirs.eval(), ours.eval()
    assert_same_step(theirs, ours, *batch())


def test_classification_heads_both_ways():
    theirs, ours = pair()
    for model in (theirs, ours):
        model.register_classification_head("a", num_classes=3)
        model.register_classification_head("b", num_classes=1, inner_dim=7)
    assert [k for k in theirs.state_dict() if k != "encoder._ema"] == list(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    tokens, _ = batch(padded=True)
    theirs.eval(), ours.eval()
    for name, classes in (("a", 3), ("b", 1)):
        expected, scores = (m(tokens, classification_head_name=name) for m in (theirs, ours))
        assert scores[0].shape == (3, classes) and relative(scores[0], expected[0]) < 1e-5
        for log in (False, True):
            found, there = (m.get_normalized_probs(out, log) for m, out in ((ours, scores), (theirs, expected)))
            torch.testing.assert_close(found, there)
    theirs.encoder.ema = None
    theirs.load_state_dict(ours.state_dict())
    assert ours.supported_targets == theirs.supported_targets


def test_upstreams_criterion_logs_the_same():
    theirs, ours = pair()
    theirs.eval(), ours.eval()
    tokens, text = batch()
    criterion = ModelCriterion(None, {}, [])
    sample = {"id": torch.arange(3), "net_input": {"src_tokens": tokens, "target_tokens": text}}
    expected, out = criterion(theirs, sample), criterion(ours, sample)
    assert out[1] == expected[1]
    assert out[2].keys() == expected[2].keys()
    for key, value in expected[2].items():
        assert float(out[2][key]) == pytest.approx(float(value), rel=1e-5), key
