"""The audio tasks: registration, upstream's configuration, early errors, and batches through fairseq's iterator."""

import argparse
import dataclasses

import pytest
import torch
from audio_corpus import RATE
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
from omegaconf import OmegaConf

import d2v_plugin.tasks.audio_finetuning  # noqa: F401
import d2v_plugin.tasks.audio_pretraining  # noqa: F401
from d2v_plugin.errors import UserError
from d2v_plugin.modules.conv_spec import ConvSpec

PRETRAINING, FINETUNING = "d2v_audio_pretraining", "d2v_audio_finetuning"


def task_of(name, model=None, **fields):
    root = {"common": {"seed": 1, "tpu": False}, "task": {"_name": name, **fields}, "model": model or {}}
    return tasks.setup_task(OmegaConf.create(root).task)


@pytest.fixture
def labelled(corpus):
    for i, length in enumerate((4000, 6000, 9000, 5000)):
        corpus.add(f"{i}.wav", length)
    corpus.manifest()
    (corpus.folder / "train.ltr").write_text("A B |\nB |\nA |\nB A B |\n")
    (corpus.folder / "dict.ltr.txt").write_text("| 4\nA 3\nB 4\n")
    return corpus


class TakesLengths(BaseFairseqModel):
    """What a task may look at: a forward with source_lengths, and an extractor of another size than the standard."""

    cfg = argparse.Namespace(conv_feature_layers="[(8, 1000, 500)]")

    def forward(self, source, padding_mask=None, source_lengths=None):
        return source


class TakesAnything(BaseFairseqModel):
    def forward(self, **kwargs):
        return kwargs


def built_with(monkeypatch, task, model):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model)
    task.build_model(argparse.Namespace())
    return task


@pytest.mark.parametrize(
    ("name", "upstream"), [(PRETRAINING, AudioPretrainingConfig), (FINETUNING, AudioFinetuningConfig)]
)
def test_every_upstream_field_keeps_its_default(name, upstream):
    ours = tasks.TASK_DATACLASS_REGISTRY[name]
    defaults = {field.name: field for field in dataclasses.fields(ours)}
    for field in dataclasses.fields(upstream):
        assert defaults[field.name].default == field.default, field.name


def test_pretraining_batches(labelled):
    task = task_of(PRETRAINING, data=str(labelled.folder), max_sample_size=5000, min_sample_size=4500, normalize=True)
    task.load_dataset("train")
    batches = list(task.get_batch_iterator(task.dataset("train"), max_tokens=10000, seed=1).next_epoch_itr())
    assert sorted(sum((batch["id"].tolist() for batch in batches), [])) == [0, 1, 2]
    assert all(batch["net_input"]["source"].shape[1] == 5000 for batch in batches)
    assert all("padding_mask" not in batch["net_input"] for batch in batches)
    assert task.datasets["train"].manifest.skipped == {"shorter than 4500 frames": 1}


def test_same_crops_from_fairseqs_iterator_with_workers(labelled):
    seen = {}
    for workers in (0, 2):
        task = task_of(PRETRAINING, data=str(labelled.folder), max_sample_size=4000)
        task.load_dataset("train")
        iterator = task.get_batch_iterator(task.dataset("train"), max_sentences=2, seed=1, num_workers=workers)
        seen[workers] = [
            batch["net_input"]["source"].clone() for _ in range(2) for batch in iterator.next_epoch_itr(shuffle=False)
        ]
        if workers:
            iterator.dataloader._iterator._shutdown_workers()
    assert len(seen[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[2], strict=True))


def test_finetuning_batches(labelled):
    task = task_of(FINETUNING, data=str(labelled.folder), labels="ltr")
    assert task.blank_symbol == "<s>" and task.target_dictionary.index("A") == 5
    task.load_dataset("train")
    iterator = task.get_batch_iterator(
        task.dataset("train"), max_sentences=4, max_positions=(10000, 10000), required_batch_size_multiple=1
    )
    (batch,) = iterator.next_epoch_itr(shuffle=False)
    assert sorted(batch["id"].tolist()) == [0, 1, 2, 3] and batch["ntokens"] == 11
    assert batch["net_input"]["padding_mask"].any()
    # a transcript of the whole cannot go with a crop
    task = task_of(FINETUNING, data=str(labelled.folder), labels="ltr", max_sample_size=6000)
    task.load_dataset("train")
    assert task.datasets["train"].labels.rows.tolist() == [0, 1, 3]


def test_subsample_keeps_labels_beside_their_audio(labelled):
    task = task_of(FINETUNING, data=str(labelled.folder), labels="ltr", subsample=0.5)
    task.load_dataset("train")
    dataset = task.dataset("train")
    assert len(dataset) == 2
    assert dataset.labels.rows.tolist() == dataset.dataset.manifest.rows.tolist()


@pytest.mark.parametrize(("model", "wants"), [(TakesLengths(), True), (TakesAnything(), False)])
def test_source_lengths_go_to_models_that_name_them(labelled, monkeypatch, model, wants):
    task = built_with(monkeypatch, task_of(FINETUNING, data=str(labelled.folder), labels="ltr"), model)
    task.load_dataset("train")
    dataset = task.dataset("train")
    net_input = dataset.collater([dataset[0], dataset[1]])["net_input"]
    assert net_input.get("source_lengths") == ([4000, 6000] if wants else None)


def test_shortest_input_follows_the_models_extractor(labelled, monkeypatch):
    task = task_of(PRETRAINING, data=str(labelled.folder))
    assert task.shortest == 400 + 320
    assert built_with(monkeypatch, task, TakesLengths()).shortest == 1000 + 500
    task = built_with(monkeypatch, task_of(FINETUNING, data=str(labelled.folder), labels="ltr"), TakesLengths())
    assert task.shortest == 1000
    labelled.add("long.wav", 2000)
    labelled.manifest()
    with open(labelled.folder / "train.ltr", "a") as file:
        file.write("A A A |\n")
    task.load_dataset("train")
    # 2000 samples make 3 frames of this extractor, and the transcript needs 6
    assert task.dataset("train").skipped == {"transcript longer than the audio": 1}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "task.data is not set"),
        ({"max_sample_size": 100, "min_sample_size": 200}, "max_sample_size=100 is below"),
        ({"max_sample_size": 0}, "max_sample_size=0 is below"),
        ({"min_sample_size": -1}, "min_sample_size must not be negative"),
        ({"sample_rate": 0}, "sample_rate must be positive"),
        ({"subsample": 0.0}, "subsample must be above 0"),
        ({"max_bad_files": -2}, "max_bad_files must be -1"),
        ({"binarized_dataset": True}, "binarized_dataset"),
        ({"multi_corpus_keys": "a,b"}, "multi_corpus_keys"),
    ],
)
def test_wrong_fields_are_refused_at_once(fields, part):
    if fields:
        fields = {"data": "somewhere", **fields}
    with pytest.raises(UserError) as caught:
        task_of(PRETRAINING, **fields)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_missing_pieces_are_named(labelled):
    with pytest.raises(UserError, match=r"nowhere/train\.tsv"):
        task_of(PRETRAINING, data="nowhere").load_dataset("train")
    with pytest.raises(UserError, match=r"task\.labels=ltr"):
        task_of(FINETUNING, data=str(labelled.folder)).load_dataset("train")
    (labelled.folder / "dict.ltr.txt").unlink()
    with pytest.raises(UserError, match=r"dict\.ltr\.txt: this dictionary"):
        task_of(FINETUNING, data=str(labelled.folder), labels="ltr").load_dataset("train")


def test_training_needs_its_folder_and_loading_a_checkpoint_does_not(monkeypatch):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: TakesAnything())
    task = task_of(PRETRAINING, data="nowhere")
    with pytest.raises(UserError, match="task.data=nowhere is no folder"):
        task.build_model(argparse.Namespace())
    assert isinstance(task.build_model(argparse.Namespace(), from_checkpoint=True), TakesAnything)


def test_unknown_symbols_are_an_error_unless_asked_for(labelled):
    (labelled.folder / "train.ltr").write_text("A X |\nB |\nA |\nB A B |\n")
    with pytest.raises(UserError, match="symbol 'X'"):
        task_of(FINETUNING, data=str(labelled.folder), labels="ltr").load_dataset("train")
    task = task_of(FINETUNING, data=str(labelled.folder), labels="ltr", unknown_symbols="unk")
    task.load_dataset("train")
    assert task.dataset("train").labels[0][1] == Dictionary().unk()


def test_bad_files_are_reported_each_epoch_and_logged_as_a_metric(labelled, caplog):
    (labelled.folder / "1.wav").unlink()
    task = task_of(PRETRAINING, data=str(labelled.folder))
    task.load_dataset("train")
    dataset = task.dataset("train")
    dataset.collater([dataset[i] for i in range(4)])
    caplog.clear()
    for epoch in (1, 2):
        task.begin_epoch(epoch, model=None)
    assert caplog.text.count("1 of 4 files were unusable and skipped (1 missing)") == 1
    # what runs when training ends
    task.report_bad_files(only_news=False)
    assert caplog.text.count("(1 missing)") == 2

    from fairseq.criterions.model_criterion import ModelCriterion
    from fairseq.logging import metrics

    with metrics.aggregate() as logged:
        task.reduce_metrics([{"loss": 1.0, "ntokens": 1, "nsentences": 1, "sample_size": 1}], ModelCriterion(task))
    assert logged.get_smoothed_values()["bad_files"] == 1


def test_other_sample_rates(corpus):
    corpus.add("a.wav", 48000, rate=48000)
    corpus.manifest()
    task = task_of(PRETRAINING, data=str(corpus.folder))
    task.load_dataset("train")
    assert len(task.dataset("train")[0]["source"]) == RATE
    task = task_of(PRETRAINING, data=str(corpus.folder), resample=False, max_bad_files=0)
    task.load_dataset("train")
    with pytest.raises(UserError, match="wrong sample rate"):
        task.dataset("train")[0]


def test_a_recording_that_no_batch_can_hold_says_which_number_to_change(corpus):
    corpus.add("long.wav", 9000)
    corpus.manifest()
    task = task_of(PRETRAINING, data=str(corpus.folder))
    task.load_dataset("train")
    with pytest.raises(UserError, match="9000 samples and dataset.max_tokens=8000.*task.max_sample_size"):
        task.get_batch_iterator(dataset=task.dataset("train"), max_tokens=8000)


# -- precomputed masks -----------------------------------------------------------------------------

AUDIO = {
    "feature_encoder_spec": "[(8, 1000, 500)]",
    "mask_prob": 0.5,
    "mask_prob_adjust": 0.05,
    "mask_length": 2,
    "inverse_mask": False,
    "mask_dropout": 0,
}
MULTI = {"clone_batch": 3, "modalities": {"audio": AUDIO}}


class TakesMasks(BaseFairseqModel):
    """The part of data2vec_multi that a task looks at."""

    def __init__(self, spec=AUDIO["feature_encoder_spec"], clones=3, modality="AUDIO"):
        super().__init__()
        self.cfg = argparse.Namespace(clone_batch=clones)
        encoder = torch.nn.Identity()
        encoder.conv_spec = ConvSpec.parse(spec)
        self.modality_encoders = torch.nn.ModuleDict({modality: encoder})

    def forward(
        self, source, id=None, padding_mask=None, precomputed_mask=None, source_lengths=None, masked_count=None
    ):
        return source


def masking_task(corpus, model=MULTI, **config):
    return task_of(PRETRAINING, model, data=str(corpus.folder), precompute_mask_config=config)


def test_masks_follow_the_models_settings(labelled, monkeypatch):
    task = built_with(monkeypatch, masking_task(labelled), TakesMasks())
    task.load_dataset("train")
    assert task.conv_spec == ((8, 1000, 500),) and task.shortest == 1500
    masks = task.dataset("train").masks
    assert dataclasses.asdict(masks) == {
        "spec": ((8, 1000, 500),),
        "prob": 0.5,
        "length": 2,
        "adjust": 0.05,
        "inverse": False,
        "dropout": 0,
        "clones": 3,
        "expand_adjacent": False,
        "non_overlapping": False,
    }
    dataset = task.dataset("train")
    net_input = dataset.collater([dataset[1], dataset[3]])["net_input"]
    assert net_input.keys() == {"source", "id", "precomputed_mask", "masked_count"}
    # 5000 samples make 9 frames
    assert net_input["precomputed_mask"].shape == (6, 9) and net_input["masked_count"] == 4


def test_the_tasks_own_settings_go_first(labelled):
    task = masking_task(labelled, mask_prob=0.2, expand_adjacent=True, feature_encoder_spec="[(8, 100, 50)]")
    task.load_dataset("train")
    masks = task.dataset("train").masks
    assert (masks.prob, masks.expand_adjacent, masks.length, masks.spec) == (0.2, True, 2, ((8, 100, 50),))


def test_no_masks_unless_asked_for(labelled):
    task = task_of(PRETRAINING, MULTI, data=str(labelled.folder))
    task.load_dataset("train")
    assert task.dataset("train").masks is None


@pytest.mark.parametrize(
    ("model", "change", "part"),
    [
        (TakesMasks(), {"clone_batch": 4}, "clone_batch=4 and the model's is 3; leave it out"),
        (TakesMasks("[(8, 400, 320)]"), {}, "different numbers of frames; leave it out"),
        (TakesMasks(modality="IMAGE"), {}, "the task reads audio and the model has IMAGE only"),
        (TakesLengths(), {}, "this model draws its masks itself; remove task.precompute_mask_config"),
        (TakesMasks(), {"mask_prob": 0.0}, "mask_prob 0.0 masks none"),
        (TakesMasks(), {"feature_encoder_spec": "__import__('os')"}, "triples"),
    ],
)
def test_masks_and_a_model_that_disagree(labelled, monkeypatch, model, change, part):
    task = masking_task(labelled, **change)
    with pytest.raises(UserError, match=part) as caught:
        built_with(monkeypatch, task, model)
    assert "\n" not in str(caught.value)


def test_a_setting_that_the_model_does_not_have(labelled):
    task = masking_task(labelled, model={"clone_batch": 3, "modalities": {"audio": {"mask_prob": 0.5}}})
    with pytest.raises(UserError, match="precompute_mask_config.feature_encoder_spec is to be the model's"):
        task.load_dataset("train")


def test_fine_tuning_has_no_masks_to_precompute(labelled):
    with pytest.raises(UserError, match="task.precompute_mask_config is for pre-training; remove it"):
        task_of(FINETUNING, MULTI, data=str(labelled.folder), labels="ltr", precompute_mask_config={})


def test_a_model_from_a_checkpoint_need_not_fit_the_tasks_masks(labelled, monkeypatch):
    task = masking_task(labelled)
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: TakesMasks(clones=8))
    assert task.build_model(argparse.Namespace(), from_checkpoint=True).cfg.clone_batch == 8
