"""Task ``d2v_masked_lm``: fairseq's batches, what is left out of them, early errors, dictionaries in checkpoints."""

import argparse
import dataclasses

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.models import BaseFairseqModel
from fairseq.tasks.masked_lm import MaskedLMConfig
from omegaconf import OmegaConf
from prose import documents, write_documents
from tiny_training import ROOT, scaled_down, train

import d2v_plugin.tasks.masked_lm  # noqa: F401
from d2v_plugin.data.text.build import BuildOptions, build
from d2v_plugin.errors import UserError

# fairseq's own masking copies tensors in a way that NumPy will stop to take
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME = "d2v_masked_lm"
MULTI = {"d2v2_multi": True, "skip_masking": True, "tokens_per_sample": 24}
# what upstream's YAML files for text set beside the data
UPSTREAM = {"include_target_tokens": True, "random_token_prob": 0, "leave_unmasked_prob": 0, "include_index": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_documents(folder / "a.txt", documents(40))
    options = BuildOptions([str(folder / "a.txt")], str(folder / "data"), valid_share=0.2, vocab_size=90)
    build(options, tell=lambda line: None)
    return folder / "data"


def task_of(name, data, **fields):
    values = {"_name": name, "data": str(data), **MULTI, **UPSTREAM, **fields}
    return tasks.setup_task(OmegaConf.create({"common": {"seed": 1}, "task": values}).task)


def batches(task, split="train", max_tokens=200, **options):
    task.load_dataset(split)
    limits = {"max_tokens": max_tokens, "max_positions": task.max_positions(), "ignore_invalid_inputs": True}
    iterator = task.get_batch_iterator(task.dataset(split), **{**limits, **options})
    return list(iterator.next_epoch_itr(shuffle=False))


class TakesLengths(BaseFairseqModel):
    def forward(self, source, padding_mask=None, source_lengths=None):
        return source


class TakesNone(BaseFairseqModel):
    def forward(self, source, padding_mask=None):
        return source


def model_cfg(positions=512, **fields):
    text = argparse.Namespace(max_source_positions=positions)
    return argparse.Namespace(_name="data2vec_multi", modalities=argparse.Namespace(text=text), **fields)


def text_cfg(positions=512):
    return argparse.Namespace(_name="data2vec_text", transformer=argparse.Namespace(max_source_positions=positions))


def test_configuration_is_upstreams():
    def defaults(config):
        return {field.name: (field.default, field.type) for field in dataclasses.fields(config)}

    config = tasks.TASK_DATACLASS_REGISTRY[NAME]
    assert issubclass(config, MaskedLMConfig) and defaults(config) == defaults(MaskedLMConfig)


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc"])
def test_batches_are_fairseqs(data, mode):
    fields = {"sample_break_mode": mode, "tokens_per_sample": 64}  # no sentence is longer
    ours, theirs = (batches(task_of(name, data, **fields), max_tokens=512) for name in (NAME, "masked_lm"))
    assert len(ours) == len(theirs) > 7
    padded = 0
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() == other.keys() and own["net_input"].keys() | {"padding_mask"} == other["net_input"].keys()
        for key in ("source", "id"):
            assert torch.equal(own["net_input"][key], other["net_input"][key])
        assert torch.equal(own["id"], other["id"])
        assert (own["nsentences"], own["ntokens"]) == (other["nsentences"], other["ntokens"])
        mask = other["net_input"]["padding_mask"]
        assert ("padding_mask" in own["net_input"]) == bool(mask.any())
        if mask.any():
            padded += 1
            assert torch.equal(own["net_input"]["padding_mask"], mask)
    # equal blocks but for the last, or sentences as they come
    assert 0 < padded < len(ours) and (padded == 1) == (mode == "none")


MASKED = {"d2v2_multi": False, "skip_masking": False, "mask_prob": 0.3}


@pytest.mark.parametrize(
    "fields",
    [{}, {"mask_multiple_length": 4, "mask_prob": 0.35}, {"random_token_prob": 0.1, "leave_unmasked_prob": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["none", "complete_doc"])
def test_without_d2v2_multi_batches_are_fairseqs_but_for_the_whole_text(data, mode, fields):
    fields = {**MASKED, "sample_break_mode": mode, "tokens_per_sample": 64, **fields}
    ours, theirs = batches(task_of(NAME, data, **fields)), batches(task_of("masked_lm", data, **fields))
    for own, other in zip(ours, theirs, strict=True):
        assert list(own) == list(other) and list(own["net_input"]) == list(other["net_input"])
        for key in ("src_tokens", "src_lengths", "src_id"):
            assert torch.equal(own["net_input"][key], other["net_input"][key]), key
        for key in ("id", "target"):
            assert torch.equal(own[key], other[key]), key
        assert (own["nsentences"], own["ntokens"]) == (other["nsentences"], other["ntokens"])
        source, text = own["net_input"]["src_tokens"], own["net_input"]["target_tokens"]
        hidden = other["net_input"]["target_tokens"] != 1
        assert torch.equal(text[hidden], other["net_input"]["target_tokens"][hidden])
        assert torch.equal(text[~hidden], source[~hidden])


def test_masks_can_be_left_to_the_model(data):
    fields = {"d2v2_multi": False, "include_target_tokens": False, "include_index": False}
    ours, theirs = batches(task_of(NAME, data, **fields)), batches(task_of("masked_lm", data, **fields))
    for own, other in zip(ours, theirs, strict=True):
        assert list(own["net_input"]) == list(other["net_input"]) == ["src_tokens", "src_lengths"]
        assert torch.equal(own["net_input"]["src_tokens"], other["net_input"]["src_tokens"])
        assert torch.equal(own["target"], other["target"])


def test_an_epoch_never_sees_the_masks_of_the_one_before(data):
    task = task_of(NAME, data, **MASKED)
    task.load_dataset("train")
    dataset = task.dataset("train")
    whole = {}
    for epoch in (1, 2, 1):
        dataset.set_epoch(epoch)
        drawn = [dataset[index]["source"].tolist() for index in range(6)]  # few enough to be remembered
        assert whole.setdefault(epoch, drawn) == drawn
    assert whole[1] != whole[2]


CROPS = {"sample_break_mode": "eos", "shorten_method": "random_crop", "tokens_per_sample": 6}


@pytest.mark.parametrize(("fields", "key"), [(MASKED, "src_tokens"), (CROPS, "source")])
def test_data_workers_that_outlive_an_epoch_hear_of_the_next(data, fields, key):
    task = task_of(NAME, data, **fields)
    task.load_dataset("train")
    dataset = task.dataset("train")
    order = dataset.ordered_indices()[-8:].tolist()
    batches = [order[:4], order[4:]]
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=1, persistent_workers=True
    )
    seen = {}
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        seen[epoch] = [batch["net_input"][key].tolist() for batch in loader]
        assert seen[epoch] == [dataset.collater([dataset[n] for n in b])["net_input"][key].tolist() for b in batches]
    assert seen[1] != seen[2]


class TakesRows(BaseFairseqModel):
    def forward(self, src_tokens, target_tokens=None, source_lengths=None, masked_rows=None, **kwargs):
        return src_tokens


@pytest.mark.parametrize(("model", "taken"), [(TakesRows, True), (TakesNone, False)])
def test_a_model_that_takes_them_gets_the_places_of_masks(data, monkeypatch, model, taken):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model())
    task = task_of(NAME, data, sample_break_mode="complete", **MASKED)
    task.load_dataset("valid")
    task.build_model(argparse.Namespace(_name="x"))
    dataset = task.dataset("valid")
    batch = dataset.collater([dataset[0], dataset[1], dataset[2]])["net_input"]
    assert ("masked_rows" in batch, "source_lengths" in batch) == (taken, taken)
    if taken:
        hidden = batch["src_tokens"] == task.mask_idx
        assert hidden.any() and torch.equal(batch["masked_rows"], hidden.flatten().nonzero().squeeze(1))
        assert batch["source_lengths"] == batch["src_lengths"].tolist() and dataset.collater([]) == {}


def test_mask_symbols_of_the_text_itself_are_unknown_words(data, tmp_path, caplog):
    """RoBERTa's way to use a dictionary that holds <mask>, and text that holds it, too."""
    task = task_of(NAME, data, **MASKED)
    symbols = task.source_dictionary.symbols[4:]
    assert symbols[-1] == "<mask>"
    tokens = np.frombuffer((data / "train.bin").read_bytes(), np.uint16).copy()
    tokens[tokens == 7] = task.mask_idx
    theirs = task_of(NAME, copy_of(data, tmp_path / "mask", symbols=symbols, train_bin=tokens.tobytes()), **MASKED)
    assert theirs.mask_idx == task.mask_idx and len(theirs.source_dictionary) == len(task.source_dictionary)
    expected, found = batches(task), batches(theirs)
    assert "taken for <unk>" in caplog.text
    for own, other in zip(found, expected, strict=True):
        text = other["net_input"]["target_tokens"]
        assert torch.equal(own["net_input"]["target_tokens"], text.masked_fill(text == 7, theirs.dictionary.unk()))


def test_the_layout_of_robertas_dictionary(tmp_path):
    """Numbers of the GPT-2 BPE for symbols, fillers without count, <mask> at the end or not."""
    lines = [f"{n} {1000 - n}" for n in range(20)] + [f"madeupword{n:04d} 0" for n in range(3)]
    for more in ([], ["<mask> 0"]):
        (tmp_path / "dict.txt").write_text("\n".join([*lines, *more]) + "\n")
        task = task_of(NAME, tmp_path, **MASKED)
        assert task.mask_idx == len(task.source_dictionary) - 1 == 4 + len(lines)


def test_a_sequence_a_block(data):
    """fairseq's table for ``eos`` uses what NumPy 2 dropped; ends of documents hold no text."""
    task = task_of(NAME, data, sample_break_mode="eos", tokens_per_sample=512)
    found = {}
    for batch in batches(task):
        tokens, mask = batch["net_input"]["source"], batch["net_input"].get("padding_mask")
        mask = torch.zeros_like(tokens, dtype=torch.bool) if mask is None else mask
        assert torch.equal(mask, tokens == task.source_dictionary.pad())
        found |= {int(n): row[~pad].tolist() for n, row, pad in zip(batch["id"], tokens, mask, strict=True)}
    expected = {}
    for index, size in enumerate(task.dataset("train").blocks.dataset.sizes):
        if size > 1:
            expected[index] = [0, *task.dataset("train").blocks.dataset[index].tolist()]
    assert found == expected and len(found) < len(task.dataset("train"))


@pytest.mark.parametrize("mode", ["eos", "complete"])
def test_shortened_sequences_fit(data, mode):
    task = task_of(NAME, data, sample_break_mode=mode, shorten_method="truncate", tokens_per_sample=12)
    sizes = [batch["net_input"]["source"].shape[1] for batch in batches(task, ignore_invalid_inputs=False)]
    assert max(sizes) == 12
    dataset = task.dataset("train")
    assert sum(len(batch["id"]) for batch in batches(task)) == int((dataset.sizes > 2).sum())


def test_crops_move_from_epoch_to_epoch(data):
    fields = {"sample_break_mode": "eos", "shorten_method": "random_crop", "tokens_per_sample": 6}
    task = task_of(NAME, data, **fields)
    task.load_dataset("train")
    dataset = task.dataset("train")

    def epoch(number):
        dataset.set_epoch(number)
        return [dataset[index]["source"].tolist() for index in range(20)]

    first = epoch(1)
    assert epoch(1) == first != epoch(2)


def test_order_within_a_length_is_shuffled_by_seed(data):
    task = task_of(NAME, data)
    task.load_dataset("train")
    order = task.dataset("train").ordered_indices()
    assert sorted(order) == list(range(len(order))) != order.tolist()
    assert np.all(np.diff(task.dataset("train").sizes[order].astype(int)) >= 0)


@pytest.mark.parametrize(("model", "taken"), [(TakesLengths, True), (TakesNone, False)])
def test_lengths_go_to_a_model_that_takes_them(data, monkeypatch, model, taken):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model())
    task = task_of(NAME, data, sample_break_mode="complete")
    task.load_dataset("valid")
    task.build_model(model_cfg())
    dataset = task.dataset("valid")
    short, long = int(np.argmin(dataset.sizes)), int(np.argmax(dataset.sizes))
    batch = dataset.collater([dataset[long], dataset[short]])["net_input"]
    lengths = [int(dataset.sizes[long]), int(dataset.sizes[short])]
    assert batch.get("source_lengths") == (lengths if taken else None)
    assert (~batch["padding_mask"]).sum(1).tolist() == lengths
    assert dataset.collater([dataset[long]])["net_input"].keys() == {"source", "id"}
    assert dataset.collater([]) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "???"}, "task.data is not set"),
        ({"data": ""}, "task.data is not set"),
        ({"data": "/nowhere"}, "/nowhere is no folder"),
        ({"tokens_per_sample": 2}, "leaves no room for text"),
        ({"skip_masking": False}, "needs task.skip_masking=true"),
        ({"d2v2_multi": False, "skip_masking": False, "mask_whole_words": True}, "task.mask_whole_words needs"),
        ({**MASKED, "mask_prob": 1.5}, "task.mask_prob must be between 0 and 1, got 1.5"),
        ({**MASKED, "mask_prob": 0}, "task.mask_prob=0.0 masks none of the text"),
        ({**MASKED, "mask_prob": 1}, "task.mask_prob=1.0 masks all of the text"),
        ({**MASKED, "mask_multiple_length": 0}, "task.mask_multiple_length must be at least 1"),
        ({**MASKED, "mask_stdev": -1}, "task.mask_stdev must be at least 0"),
        ({**MASKED, "random_token_prob": 0.6, "leave_unmasked_prob": 0.5}, "must be between 0 and 1, got 1.1"),
    ],
)
def test_wrong_fields_are_one_line(data, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        task_of(NAME, **{"data": data, **fields})
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_dictionary(tmp_path):
    with pytest.raises(UserError, match=r"holds no dict.txt; binarise text with `d2v text build`"):
        task_of(NAME, tmp_path)
    (tmp_path / "dict.txt").write_text("word\n")
    with pytest.raises(UserError, match="dict.txt:1: expected a symbol and its count"):
        task_of(NAME, tmp_path)


def test_frequencies_that_are_not_there(data, tmp_path):
    plain = copy_of(data, tmp_path / "plain")
    symbols = task_of(NAME, data).source_dictionary.symbols[4:-1]
    (plain / "dict.txt").write_text("".join(f"{symbol} 0\n" for symbol in symbols))
    task = task_of(NAME, plain, **{**MASKED, "random_token_prob": 0.1, "freq_weighted_replacement": True})
    with pytest.raises(UserError, match="dict.txt of .* counts no symbol; set it to false"):
        task.load_dataset("train")


def test_a_split_that_is_not_there(data):
    with pytest.raises(UserError, match=r"test.idx does not exist \(there is: train, valid\).*dataset.valid_subset"):
        task_of(NAME, data).load_dataset("test")


def copy_of(data, dest, *, symbols=None, **files):
    dest.mkdir()
    for path in data.iterdir():
        content = files.get(path.name.replace(".", "_"), path.read_bytes())
        (dest / path.name).write_bytes(content)
    if symbols is not None:
        (dest / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    return dest


def test_damaged_and_foreign_files_are_one_line(data, tmp_path):
    cut = copy_of(data, tmp_path / "cut", train_bin=(data / "train.bin").read_bytes()[:-10])
    with pytest.raises(UserError, match="where train.idx announces"):
        task_of(NAME, cut).load_dataset("train")
    other = copy_of(data, tmp_path / "other", symbols="abcdefgh")
    with pytest.raises(UserError, match=r"holds the token \d+ and .*dict.txt has 12 symbols"):
        task_of(NAME, other).load_dataset("train")


@pytest.mark.parametrize(
    ("fields", "model", "message"),
    [
        ({"d2v2_multi": False}, model_cfg(), "needs task.d2v2_multi=true and task.skip_masking=true"),
        ({}, model_cfg(positions=23), r"tokens_per_sample=24 is beyond model.modalities.text.max_source_positions=23"),
        ({}, model_cfg(supported_modality="AUDIO"), "supported_modality=AUDIO and a task that serves text"),
        ({}, argparse.Namespace(_name="x", max_source_positions=10), "beyond model.max_source_positions=10"),
        ({}, text_cfg(), "model data2vec_text learns from masked tokens .* set task.d2v2_multi=false"),
        ({"d2v2_multi": False}, text_cfg(), "task.skip_masking=false and"),
        ({**MASKED, "include_target_tokens": False}, text_cfg(), "task.include_target_tokens=true"),
        (MASKED, text_cfg(10), r"tokens_per_sample=24 is beyond model.transformer.max_source_positions=10"),
    ],
)
def test_models_that_do_not_go_with_the_task(data, fields, model, message):
    with pytest.raises(UserError, match=message):
        task_of(NAME, data, **fields).build_model(model)


def test_as_many_tokens_as_positions_are_fine(data, monkeypatch):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: TakesNone())
    task = task_of(NAME, data)
    for model in (model_cfg(24, supported_modality="TEXT"), model_cfg(24, supported_modality=None)):
        assert isinstance(task.build_model(model), TakesNone)


def test_blocks_that_are_too_long(data, caplog):
    task = task_of(NAME, data, sample_break_mode="eos", tokens_per_sample=12)
    task.load_dataset("valid")
    with pytest.raises(UserError, match=r"longest block has \d+ tokens and task.tokens_per_sample=12"):
        task.get_batch_iterator(task.dataset("valid"), max_positions=12)
    batches(task)
    assert "of the tokens, are too long and left out; task.sample_break_mode=none" in caplog.text
    whole = task_of(NAME, data)
    whole.load_dataset("train")
    with pytest.raises(UserError, match="24 tokens and dataset.max_tokens=20"):
        whole.get_batch_iterator(whole.dataset("train"), max_tokens=20, max_positions=20)


def test_several_folders_take_turns(data, tmp_path):
    copy = copy_of(data, tmp_path / "copy", train_bin=(data / "valid.bin").read_bytes())
    (copy / "train.idx").write_bytes((data / "valid.idx").read_bytes())
    task = task_of(NAME, f"{data}:{copy}")
    sizes = []
    for epoch in (1, 2, 3):
        task.load_dataset("train", epoch=epoch)
        sizes.append(len(task.dataset("train")))
    assert sizes[0] == sizes[2] > sizes[1]
    with pytest.raises(UserError, match="/no is no folder"):
        task_of(NAME, f"{data}:/no")


def test_a_checkpoint_carries_its_dictionary(data, tmp_path):
    task = task_of(NAME, data)
    state = task.state_dict()
    task.load_state_dict(state)  # the same one
    cfg = OmegaConf.create({"common": {"seed": 1}, "task": {"_name": NAME, "data": str(tmp_path / "gone"), **MULTI}})
    elsewhere = tasks.setup_task(cfg.task, from_checkpoint=True)
    elsewhere.load_state_dict(state)
    assert elsewhere.source_dictionary.symbols == task.source_dictionary.symbols
    assert elsewhere.mask_idx == task.mask_idx == len(task.source_dictionary) - 1

    symbols = task.source_dictionary.symbols[4:-1]
    fewer = task_of(NAME, copy_of(data, tmp_path / "fewer", symbols=symbols[:50]))
    with pytest.raises(UserError, match=r"another dictionary .*\(91 symbols there, 55 here\)"):
        fewer.load_state_dict(state)
    swapped = [symbols[1], symbols[0], *symbols[2:]]
    with pytest.raises(UserError, match=r"\(symbol 4 is .* there, .* here\)"):
        task_of(NAME, copy_of(data, tmp_path / "swapped", symbols=swapped)).load_state_dict(state)
    with pytest.raises(UserError, match="the checkpoint brings none"):
        tasks.setup_task(cfg.task, from_checkpoint=True).load_state_dict({})
    task_of(NAME, data).load_state_dict({})  # a checkpoint of fairseq's own masked_lm


@pytest.mark.parametrize("recipe", ["base_books_wiki", "base_books_wiki_v2"])
def test_training_and_loading_without_the_data(data, tmp_path, recipe):
    here = copy_of(data, tmp_path / "here")
    cfg = scaled_down(ROOT / "examples" / "text" / f"{recipe}.yaml", here, tmp_path / "run")
    train(cfg)
    for path in here.iterdir():
        path.unlink()
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "run" / "checkpoint_last.pt")])
    assert task.source_dictionary.symbols[:5] == ["<s>", "<pad>", "</s>", "<unk>", task.source_dictionary[4]]
    tokens = torch.tensor([[0, 5, 6, 7, 2], [0, 5, 2, 1, 1]])
    model = models[0].eval()
    if recipe.endswith("_v2"):
        features = model.extract_features(tokens, padding_mask=tokens == 1)["x"]
    else:
        features = model(tokens, features_only=True)[0]
    assert features.shape == (2, 5, 32) and torch.isfinite(features).all()
