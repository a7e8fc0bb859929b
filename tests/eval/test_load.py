"""Models out of checkpoints: what is needed, what is refused, and that the weights are the checkpoint's."""

import pickle

import pytest
import torch
from tiny_speech import LETTERS, pretraining_cfg, write_ctc, write_pretrained

from d2v_plugin.errors import UserError
from d2v_plugin.eval.load import CTC, PRETRAINED, load_model, pick_device


def test_pretrained(pretrained):
    loaded = load_model(pretrained)
    assert (loaded.kind, loaded.name, loaded.depth, loaded.symbols) == (PRETRAINED, "data2vec_audio", 3, None)
    assert loaded.sample_rate == 8000 and loaded.normalize and not loaded.model.training
    # [(16, 10, 5)] + [(16, 4, 4)] * 2 + [(16, 2, 2)]
    assert loaded.stride == 160 and loaded.frame_rate == 50.0
    assert loaded.receptive_field == 10 + 5 * (3 + 4 * (3 + 4 * 1))
    stored = torch.load(pretrained, weights_only=True)["model"]
    weights = loaded.model.state_dict()
    assert weights and all(torch.equal(weights[key], stored[key]) for key in weights)


def test_receptive_field_is_the_shortest_input(pretrained):
    loaded = load_model(pretrained)
    assert loaded.encoder.feature_extractor(torch.zeros(1, loaded.receptive_field)).size(-1) == 1
    with pytest.raises(ValueError, match="shorter than"):
        loaded.encoder.feature_extractor(torch.zeros(1, loaded.receptive_field - 1))


def test_ctc_needs_no_file_of_the_training_machine(finetuned):
    loaded = load_model(finetuned, want=CTC)
    assert (loaded.kind, loaded.depth) == (CTC, 3)
    assert loaded.symbols == ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
    stored = torch.load(finetuned, weights_only=False)["model"]
    assert all(torch.equal(value, stored[key]) for key, value in loaded.model.state_dict().items())


def test_dictionary_is_found_where_it_can_be(tmp_path, corpus):
    letters = corpus.folder / "dict.ltr.txt"
    path = write_ctc(tmp_path / "c.pt", letters, store_dictionary=False)
    with pytest.raises(UserError, match=r"no dictionary .*give the file of training with --dict"):
        load_model(path)
    expected = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
    assert load_model(path, manifest=corpus.manifest).symbols == expected
    assert load_model(path, dictionary=letters).symbols == expected
    other = tmp_path / "other.txt"
    other.write_text("| 1\na 1\n")
    with pytest.raises(UserError, match="has 6 symbols, the model has 10 outputs"):
        load_model(path, dictionary=other)
    other.write_text("no count here\n")
    with pytest.raises(UserError, match="cannot read the dictionary"):
        load_model(path, dictionary=other)


def test_untrained_network_is_seeded(pretrained):
    def weights(seed):
        return load_model(pretrained, untrained_seed=seed).model.state_dict()

    first, again, other, trained = weights(1), weights(1), weights(2), load_model(pretrained).model.state_dict()
    key = "encoder.layers.0.fc1.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key]) and not torch.equal(first[key], trained[key])


def test_loading_leaves_the_random_state_alone(pretrained):
    before = torch.random.get_rng_state()
    load_model(pretrained)
    assert torch.equal(before, torch.random.get_rng_state())


def test_wrong_kind(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"is a pre-training checkpoint \(data2vec_audio\).*fine-tune"):
        load_model(pretrained, want=CTC)
    cfg = {"model": {"_name": "transformer_lm"}, "task": {}}
    torch.save({"cfg": cfg, "model": {}}, tmp_path / "lm.pt")
    with pytest.raises(UserError, match="holds a 'transformer_lm' model"):
        load_model(tmp_path / "lm.pt")


def test_weights_must_fit(tmp_path):
    path = write_pretrained(tmp_path / "p.pt")
    state = torch.load(path, weights_only=True)
    del state["model"]["mask_emb"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"do not fit the model .*mask_emb"):
        load_model(path)


def test_no_configuration(tmp_path):
    torch.save({"model": {}, "cfg": None, "args": None}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="has no training configuration"):
        load_model(tmp_path / "x.pt")


class Trap:
    """Runs code when it is unpickled without care."""

    def __reduce__(self):
        return (pytest.fail, ("the checkpoint ran code",))


def test_checkpoint_cannot_run_code(tmp_path):
    torch.save({"model": {}, "cfg": pretraining_cfg("layer_norm", False), "extra": Trap()}, tmp_path / "t.pt")
    with pytest.raises(UserError, match="could run code"):
        load_model(tmp_path / "t.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError):
        load_model(tmp_path / "p.pt")


def test_device():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="is not a device"):
        pick_device("abacus")
