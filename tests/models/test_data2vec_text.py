"""The contract of 1.0 for text: fields, padding, updates, heads, weights of other versions, refused settings."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
import upstream
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from on_device import OnDevice
from tiny_multi import text_task
from tiny_text import MASK, PAD, WORDS, batch, build, root_config, tiny

from d2v_plugin.criterions.d2v_regression import D2vRegressionCriterion
from d2v_plugin.errors import UserError
from d2v_plugin.method.ema import annealed_decay
from d2v_plugin.models.data2vec_text import Data2VecTextEncoder, Data2VecTextModel
from d2v_plugin.models.data2vec_text_config import Data2VecTextConfig

# -- what upstream's files and checkpoints rely on ----------------------------------------------------


def plain(config):
    return OmegaConf.to_container(OmegaConf.structured(config))


def test_every_upstream_field_keeps_its_default():
    theirs, ours = plain(upstream.load("data2vec_text").Data2VecTextConfig), plain(Data2VecTextConfig)
    for cfg in (theirs, ours):
        assert cfg["transformer"]["decoder"].pop("input_dim") == cfg["transformer"]["decoder"].pop("output_dim")
    assert theirs.items() <= ours.items()


def test_references_lead_somewhere():
    """fairseq resolves a whole configuration before it builds anything."""
    root = root_config()
    root.model = OmegaConf.structured(Data2VecTextConfig)
    found = OmegaConf.to_container(root, resolve=True)["model"]
    assert (found["max_positions"], found["ema_anneal_end_step"]) == (40, 100)
    assert found["transformer"]["decoder"]["input_dim"] == found["transformer"]["decoder"]["embed_dim"] == 512


@pytest.mark.parametrize("kind", [Data2VecTextModel, Data2VecTextEncoder])
def test_forward_takes_what_upstream_takes(kind):
    theirs = inspect.signature(getattr(upstream.load("data2vec_text"), kind.__name__).forward).parameters
    found = inspect.signature(kind.forward).parameters
    *expected, rest = theirs
    # what is ours comes after, so that positional arguments mean the same
    assert list(found)[: len(expected)] == expected and list(found)[-1] == rest
    assert all(found[name].default == theirs[name].default for name in theirs)


# -- a step ------------------------------------------------------------------------------------------


def test_a_step_gives_loss_sizes_and_statistics():
    model = tiny()
    tokens, text = batch(padded=True)
    out = model(tokens, text)
    assert out["sample_size"] == int((tokens == MASK).sum())
    assert out["losses"]["main"] > 0 and out["target_var"] > 0 and out["pred_var"] > 0
    assert out["ema_decay"] == out["logs"]["ema_decay"] == pytest.approx(900)
    out["losses"]["main"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_padding_changes_no_feature():
    model = tiny().eval()
    tokens, _ = batch(padded=True)
    together, _ = model(tokens, features_only=True)
    for row, features in zip(tokens, together, strict=True):
        n = int((row != PAD).sum())
        alone, _ = model(row[None, :n], features_only=True)
        torch.testing.assert_close(features[None, :n], alone, rtol=1e-4, atol=1e-6)


def test_length_aware_targets_leave_padding_out():
    """Instance norm runs over the padding, as upstream; the option ends that."""
    tokens, text = batch(B=1, T=20)
    padding = torch.full((1, 9), PAD)
    longer = [torch.cat([part, padding], 1) for part in (tokens, text)]
    norm = {"layer_norm_target_layer": False, "instance_norm_target_layer": True}
    losses = {}
    for aware in (False, True):
        torch.manual_seed(1)
        model = tiny(length_aware_targets=aware, **norm).eval()
        with torch.no_grad():
            losses[aware] = [float(model(*parts)["losses"]["main"]) for parts in ((tokens, text), longer)]
    assert losses[True][1] == pytest.approx(losses[True][0], rel=1e-5)
    assert losses[False][1] != pytest.approx(losses[False][0], rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_what_the_task_knows_changes_nothing_but_where_it_comes_from(padded):
    model = tiny().eval()
    tokens, text = batch(padded=padded)
    rows = tokens.eq(MASK).flatten().nonzero().squeeze(1)
    lengths = (tokens != PAD).sum(1).tolist()
    told = model(tokens, text, source_lengths=lengths, masked_rows=rows)
    found = model(tokens, text)
    assert torch.equal(told["losses"]["main"], found["losses"]["main"])
    assert told["sample_size"] == found["sample_size"]
    assert (model.encoder._padding_mask(tokens, lengths) is None) == (not padded)
    assert (model.encoder._padding_mask(tokens, None) is None) == (not padded)


@pytest.mark.parametrize("padded", [False, True])
def test_a_training_step_with_what_the_task_knows_reads_nothing_from_the_device(padded):
    model = tiny(watch_interval=100).train()
    model.set_num_updates(1)
    tokens, text = batch(padded=padded)
    net_input = {"src_tokens": tokens, "target_tokens": text, "masked_rows": tokens.eq(MASK).flatten().nonzero()[:, 0]}
    net_input = {key: value.as_subclass(OnDevice) for key, value in net_input.items()}
    net_input["source_lengths"] = (tokens != PAD).sum(1).tolist()
    loss, _, logs = D2vRegressionCriterion(None)(model, {"id": torch.arange(3), "net_input": net_input})
    assert isinstance(loss, OnDevice) and isinstance(logs["target_var"], OnDevice)
    loss.backward()


def test_nothing_masked_is_no_loss():
    model = tiny()
    _, text = batch()
    out = model(text, text)
    assert out["sample_size"] == 0 and float(out["losses"]["main"].detach()) == 0
    out["losses"]["main"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_activation_checkpointing_changes_no_gradient():
    tokens, text = batch(padded=True)
    grads = []
    for switch in (False, True):
        torch.manual_seed(0)
        model = tiny(transformer__checkpoint_activations=switch, transformer__dropout=0.3)
        torch.manual_seed(1)
        model(tokens, text)["losses"]["main"].backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_layerdrop_leaves_blocks_out_in_training_alone():
    model = tiny(transformer__encoder__layerdrop=0.5)
    tokens, _ = batch()

    def ran():
        return len(model(tokens, features_only=True, return_all_hiddens=True)[1]["inner_states"]) - 1

    model.train()
    counts = [ran() for _ in range(40)]
    assert min(counts) < 2 and max(counts) == 3
    torch.manual_seed(0), torch.manual_seed(1)
    first = [ran() for _ in range(10)]
    torch.manual_seed(0), ran(), torch.manual_seed(1)
    assert [ran() for _ in range(10)] == first
    model.eval()
    assert {ran() for _ in range(5)} == {3}


@pytest.mark.parametrize("scale", [None, 0, -2])
def test_loss_scales_that_mean_one_over_the_root(scale):
    torch.manual_seed(1)
    tokens, text = batch()
    losses = []
    for value in (scale, 24**-0.5):
        torch.manual_seed(2)
        losses.append(float(tiny(loss_scale=value)(tokens, text)["losses"]["main"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_collapse_is_noticed():
    model = tiny(collapse_guard_updates=0, min_target_var=5.0, watch_interval=1)
    model.set_num_updates(1)
    with pytest.raises(UserError, match="collapse at update 1: the teacher's targets hardly vary"):
        model(*batch())
    found = tiny(watch_interval=1)(*batch())["logs"]
    assert {"student_std", "student_rank", "teacher_std", "teacher_rank"} < found.keys()


# -- teacher and updates ------------------------------------------------------------------------------


def nudge(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)


def teacher(model):
    return torch.cat([v.flatten().clone() for v in model.encoder.ema.state_dict().values()])


def test_only_a_step_of_one_moves_the_teacher():
    model = tiny().train()
    start = teacher(model)
    nudge(model)
    for update in (0, 5, 5):  # the number fairseq repeats, and the jump of a resume
        model.set_num_updates(update)
        assert torch.equal(teacher(model), start)
    model.set_num_updates(6)
    assert not torch.equal(teacher(model), start)
    assert model.num_updates == 6
    assert model.encoder.ema.decay == annealed_decay(0.9, 0.99, 6, 30)


@pytest.mark.parametrize(
    ("overrides", "shared"),
    [
        (
            {},
            {"embed_tokens.weight", "embed_positions.weight", "layernorm_embedding.weight", "layernorm_embedding.bias"},
        ),
        ({"transformer__layernorm_embedding": False}, {"embed_tokens.weight", "embed_positions.weight"}),
        ({"ema_transformer_layers_only": False}, set()),
    ],
)
def test_what_the_teacher_shares(overrides, shared):
    model = tiny(**overrides).train()
    nudge(model)
    model.set_num_updates(1)
    student, ema = dict(model.encoder.sentence_encoder.named_parameters()), model.encoder.ema.fp32
    assert {name for name, p in student.items() if torch.equal(ema[name], p)} == shared


def test_loading_restores_the_teacher_before_and_after_it_exists():
    trained = tiny().train()
    nudge(trained)
    trained.set_num_updates(1)
    state = trained.state_dict()
    for made in (tiny(), build(root_config())):
        made.load_state_dict(copy.deepcopy(state))
        assert torch.equal(teacher(made), teacher(trained))


def test_weights_of_another_model_are_named():
    other = tiny(transformer__encoder__ffn_embed_dim=30).state_dict()
    with pytest.raises(UserError, match="teacher weight .* in the checkpoint and .* use the sizes of the checkpoint"):
        tiny().load_state_dict(dict(other))
    del other["encoder._ema"]
    with pytest.raises(UserError, match="do not fit this data2vec_text model; use the model settings.*size mismatch"):
        build(root_config()).load_state_dict(other)
    with pytest.raises(UserError, match="trained with another vocabulary than this run's dict.txt"):
        tiny().load_state_dict(tiny(text_task(30)).state_dict())
    state = tiny().state_dict()
    del state["encoder._ema"]
    with pytest.raises(UserError, match="holds no teacher.*start a new run"):
        tiny().load_state_dict(state)


# -- weights of other versions ------------------------------------------------------------------------


def older(state):
    """What earlier versions called the same weights."""
    found = {}
    for key, value in state.items():
        for new, old in (
            ("encoder.sentence_encoder", "decoder.sentence_encoder"),
            ("layernorm_embedding", "emb_layer_norm"),
            ("self_attn_layer_norm", "layer_norms.0"),
            ("final_layer_norm", "layer_norms.1"),
            ("regression_head", "lm_head"),
        ):
            key = key.replace(new, old)
        found[key] = value
    for layer in range(3):
        block = f"decoder.sentence_encoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            found[f"{block}in_proj_{kind}"] = torch.cat([found.pop(f"{block}{p}_proj.{kind}") for p in "qkv"])
    del found["decoder.sentence_encoder.version"]
    return found


def test_names_of_earlier_versions():
    model, made = tiny(), tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()  # new layer norms are all alike
    state = model.state_dict()
    ema = state.pop("encoder._ema")
    target = {f"encoder.target_model.{key}": value for key, value in ema.items()}  # a teacher of before _ema
    made.encoder.ema = None
    made.load_state_dict({**older(state), **target})
    for key, value in made.state_dict().items():
        assert torch.equal(value, state[key]), key


def roberta(state):
    """Weights with the head of a masked language model in the place of ours, as the published ones."""
    state = {key: value for key, value in state.items() if "regression_head" not in key and "_ema" not in key}
    head = {"dense.weight": (24, 24), "dense.bias": (24,), "layer_norm.weight": (24,), "layer_norm.bias": (24,)}
    head |= {"weight": (24, 24), "bias": (24,)}
    return state | {f"encoder.lm_head.{key}": torch.zeros(shape) for key, shape in head.items()}


def test_a_language_models_head_is_left_out(caplog):
    model, made = tiny(), build(root_config())
    own = copy.deepcopy(made.encoder.regression_head.state_dict())
    made.load_state_dict(roberta(model.state_dict()))
    assert "predicts tokens and is left out" in caplog.text
    for key, value in made.encoder.regression_head.state_dict().items():
        assert torch.equal(value, own[key])
    tokens, _ = batch()
    expected = model.eval()(tokens, features_only=True)[0]
    torch.testing.assert_close(made.eval()(tokens, features_only=True)[0], expected)


def test_fine_tuning_goes_without_the_head_of_pre_training():
    state = {key: value for key, value in tiny().state_dict().items() if "regression_head" not in key}
    del state["encoder._ema"]
    made = build(root_config())
    with pytest.raises(UserError, match="regression_head"):
        made.load_state_dict(dict(state))
    made.register_classification_head("a", num_classes=3)
    own = copy.deepcopy(made.encoder.regression_head.state_dict())
    made.load_state_dict(dict(state))
    assert all(torch.equal(value, own[key]) for key, value in made.encoder.regression_head.state_dict().items())


def test_without_pretraining_modules_any_of_these_files_loads():
    source = tiny()
    source.register_classification_head("old", num_classes=2)
    full = tiny().state_dict()
    for state in (full, roberta(full), older({k: v for k, v in full.items() if "_ema" not in k}), source.state_dict()):
        model = build(root_config())
        model.remove_pretraining_modules()
        model.load_state_dict(copy.deepcopy(state))
        assert not any("_ema" in key or "head" in key for key in model.state_dict())


def test_the_first_layers_alone():
    model, tokens = tiny(transformer__encoder__normalize_before=True).eval(), batch()[0]
    states = model(tokens, features_only=True, return_all_hiddens=True)[1]["inner_states"]
    model.remove_pretraining_modules(last_layer=1)
    assert not any(".layers.2." in k or "sentence_encoder.layer_norm" in k for k in model.state_dict())
    features, _ = model(tokens, features_only=True)
    torch.testing.assert_close(features, states[2].transpose(0, 1))
    with pytest.raises(UserError, match="has no teacher, so it cannot be pre-trained"):
        model(*batch())


# -- classification heads -----------------------------------------------------------------------------


def test_a_head_makes_a_model_for_fine_tuning():
    model = tiny().train()
    model.register_classification_head("a", num_classes=3)
    model.set_num_updates(1)
    assert model.encoder.ema is None and not any("_ema" in key for key in model.state_dict())
    scores, extra = model(batch(padded=True)[0], classification_head_name="a", src_lengths=None)
    assert scores.shape == (3, 3) and extra["inner_states"] is None
    scores.sum().backward()
    # a parameter without a gradient would keep several processes waiting
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        f"encoder.regression_head.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    ]
    with pytest.raises(UserError, match="no classification head 'b', it has a; register"):
        model(batch()[0], classification_head_name="b")


def test_a_pretrained_checkpoint_starts_fine_tuning_and_a_fine_tuned_one_loads(caplog):
    pretrained = tiny()
    model = build(root_config())
    model.register_classification_head("a", num_classes=3)
    head = copy.deepcopy(model.classification_heads.state_dict())
    model.load_state_dict(copy.deepcopy(pretrained.state_dict()))
    for key, value in model.classification_heads.state_dict().items():
        assert torch.equal(value, head[key])
    again = build(root_config())
    again.register_classification_head("a", num_classes=3)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert "left out" not in caplog.text


def test_heads_that_do_not_match(caplog):
    source = tiny()
    source.register_classification_head("a", num_classes=3)
    source.register_classification_head("b", num_classes=2)
    model = build(root_config())
    model.register_classification_head("a", num_classes=4)
    model.load_state_dict(copy.deepcopy(source.state_dict()))
    assert list(model.classification_heads) == ["a"]
    assert model.classification_heads["a"].out_proj.out_features == 4
    assert "head a has 3 classes and 24 inner channels there, and others here; left out" in caplog.text
    assert "head b is not part of this model" in caplog.text
    taking = build(root_config(load_checkpoint_heads=True))
    taking.load_state_dict(copy.deepcopy(source.state_dict()))
    assert list(taking.classification_heads) == ["a", "b"]
    for key, value in taking.classification_heads.state_dict().items():
        assert torch.equal(value, source.classification_heads.state_dict()[key])
    source.register_classification_head("a", num_classes=5)
    assert "head a is replaced by a new one with 5 classes" in caplog.text


# -- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"average_top_k_layers": 4}, "average_top_k_layers=4 must lie between 1 and model.*layers, which is 3"),
        ({"average_top_k_layers": 0}, "average_top_k_layers=0"),
        ({"head_layers": 0}, "model.head_layers must be at least 1, got 0"),
        ({"loss_beta": -1}, "model.loss_beta must be at least 0"),
        ({"ema_decay": 1.5}, "model.ema_decay must be between 0 and 1"),
        ({"transformer__dropout": 1.0}, "model.transformer.dropout must be at least 0 and below 1"),
        ({"transformer__encoder__layerdrop": 2}, "model.transformer.encoder.layerdrop must be between 0 and 1"),
        ({"transformer__encoder__attention_heads": 5}, "embed_dim=24 is not a multiple of attention_heads, which is 5"),
        ({"transformer__encoder__layers": 0}, "model.transformer.encoder.layers must be at least 1"),
        ({"transformer__max_source_positions": 0}, "model.transformer.max_source_positions must be at least 1"),
        ({"transformer__quant_noise__pq": 0.1}, "model.transformer.quant_noise.pq is not part of data2vec"),
        ({"transformer__offload_activations": True}, "checkpoint_activations=true saves memory"),
    ],
)
def test_configurations_that_cannot_work(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        tiny(**overrides)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_positions():
    task = text_task(WORDS)
    task.cfg = SimpleNamespace(tokens_per_sample=41)
    with pytest.raises(UserError, match="tokens_per_sample=41 is beyond model.transformer.max_source_positions=40"):
        tiny(task, max_positions=41)
    with pytest.raises(UserError, match="tokens_per_sample=41 is beyond model.max_positions=40"):
        tiny(task, transformer__max_source_positions=41)
    with pytest.raises(UserError, match="sequence of 41 tokens .* or raise model.transformer.max_source_positions"):
        tiny()(torch.full((1, 41), 5), features_only=True)
    assert tiny().max_positions() == 40
    assert tiny(max_positions=12).max_positions() == 12
    assert tiny(max_positions=64).max_positions() == 40
    assert tiny(max_positions=64, transformer__no_token_positional_embeddings=True).max_positions() == 64


def test_a_dictionary_without_a_mask():
    with pytest.raises(UserError, match="the dictionary has no <mask>.*use a task that adds it"):
        tiny(SimpleNamespace(source_dictionary=Dictionary()))


def test_pretraining_without_the_text():
    with pytest.raises(UserError, match="set task.include_target_tokens=true"):
        tiny()(batch()[0])
