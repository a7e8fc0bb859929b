"""Label files, and what CTC can do with them."""

import numpy as np
import pytest
import torch
from audio_corpus import RATE
from fairseq.data import AddTargetDataset, Dictionary, FileAudioDataset
from fairseq.tasks.audio_finetuning import LabelEncoder, label_len_fn

from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.labels import load_labels
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.data.audio.target_dataset import TargetDataset
from d2v_plugin.errors import UserError

LINES = ("A B | C |", "B B A |", "", "C |", "A A A A |")


@pytest.fixture
def dictionary():
    result = Dictionary()
    for symbol in "|ABC":
        result.add_symbol(symbol)
    return result


@pytest.fixture
def labelled(corpus):
    for i in range(len(LINES)):
        corpus.add(f"{i}.wav", 3000 + 500 * i)
    (corpus.folder / "train.ltr").write_text("\n".join(LINES) + "\n")
    return corpus


def labels_of(corpus, dictionary, manifest=None, **options):
    manifest = manifest or load_manifest(corpus.manifest())
    return load_labels(
        corpus.folder / "train.ltr",
        dictionary.indices,
        rows=manifest.rows,
        total=manifest.total,
        manifest_path=manifest.path,
        dictionary_path="dict.ltr.txt",
        **options,
    )


def test_tokens_and_selection(labelled, dictionary):
    manifest = load_manifest(labelled.manifest(), min_size=3500, max_size=4600)
    labels = labels_of(labelled, dictionary, manifest)
    assert labels.rows.tolist() == [1, 2, 3]
    assert [dictionary.string(torch.tensor(labels[i].astype(int))) for i in range(3)] == ["B B A |", "", "C |"]
    assert labels.tokens.dtype == np.uint8
    assert labels.lengths.tolist() == [4, 0, 2]


def test_frames_needed_counts_repeats_within_an_utterance(labelled, dictionary):
    # the | that ends one line and begins the next must not count
    (labelled.folder / "train.ltr").write_text("A B |\n| A A |\n\nC\nC C C\n")
    assert labels_of(labelled, dictionary).frames_needed().tolist() == [3, 5, 0, 1, 5]


@pytest.mark.parametrize("lines", [LINES[:3], (*LINES, "A |")])
def test_other_number_of_lines_than_the_manifest(labelled, dictionary, lines):
    (labelled.folder / "train.ltr").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as caught:
        labels_of(labelled, dictionary)
    message = str(caught.value)
    for part in (f"{labelled.folder}/train.ltr has {len(lines)} lines", "train.tsv has 5 entries"):
        assert part in message
    assert "\n" not in message


def test_blank_lines_at_the_end_are_no_labels(labelled, dictionary):
    (labelled.folder / "train.ltr").write_text("\n".join(LINES) + "\n\n\n")
    assert len(labels_of(labelled, dictionary)) == 5


def test_unknown_symbol(labelled, dictionary):
    (labelled.folder / "train.ltr").write_text("A |\nB Q |\nA\nA\nA\n")
    with pytest.raises(UserError, match=r"train\.ltr:2: symbol 'Q' is not in dict\.ltr\.txt"):
        labels_of(labelled, dictionary)
    labels = labels_of(labelled, dictionary, unknown=dictionary.unk())
    assert labels[1].tolist() == [dictionary.index("B"), dictionary.unk(), dictionary.index("|")]


def test_missing_or_undecodable_file(labelled, dictionary):
    (labelled.folder / "train.ltr").write_bytes(b"\xff\xfe A\n")
    with pytest.raises(UserError, match="UTF-8"):
        labels_of(labelled, dictionary)
    (labelled.folder / "train.ltr").unlink()
    with pytest.raises(UserError, match="does not exist"):
        labels_of(labelled, dictionary)


def targets_of(corpus, dictionary, frames=None, **options):
    manifest = load_manifest(corpus.manifest())
    audio = AudioDataset(manifest, RATE, pad=True, shuffle=False)
    labels = labels_of(corpus, dictionary, manifest)
    return TargetDataset(audio, labels, dictionary.pad(), dictionary.eos(), frames=frames, **options)


def test_batches_equal_fairseq(labelled, dictionary):
    ours = targets_of(labelled, dictionary)
    theirs = AddTargetDataset(
        FileAudioDataset(str(labelled.manifest()), RATE, pad=True, shuffle=False),
        [line.encode() for line in LINES],
        pad=dictionary.pad(),
        eos=dictionary.eos(),
        batch_targets=True,
        process_label=LabelEncoder(dictionary),
        label_len_fn=label_len_fn,
    )
    a, b = (each.collater([each[i] for i in (0, 1, 4)]) for each in (ours, theirs))
    assert a.keys() == b.keys()
    for key in ("id", "target", "target_lengths"):
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key])
    assert a["ntokens"] == b["ntokens"] == 14
    for key in ("source", "padding_mask"):
        assert torch.equal(a["net_input"][key], b["net_input"][key])


def test_empty_and_unalignable_transcripts_are_left_out_and_counted(labelled, dictionary, caplog):
    dataset = targets_of(labelled, dictionary, frames=np.array([5, 4, 9, 9, 8]))
    assert dataset.ordered_indices().tolist() == [0, 3, 4]
    assert dataset.skipped == {"empty transcript": 1, "transcript longer than the audio": 1}
    assert "empty transcript (lines 3)" in caplog.text
    assert "transcript longer than the audio (lines 2)" in caplog.text


def test_no_usable_transcript(labelled, dictionary):
    with pytest.raises(UserError, match="none of its 5 utterances"):
        targets_of(labelled, dictionary, frames=np.zeros(5, int))


def test_size_filter(labelled, dictionary):
    dataset = targets_of(labelled, dictionary)
    kept, ignored = dataset.filter_indices_by_size(np.array([0, 1, 4]), (4000, 4))
    assert kept.tolist() == [1] and ignored == [0, 4]
    kept, ignored = dataset.filter_indices_by_size(np.array([0, 1, 4]), 4000)
    assert kept.tolist() == [0, 1] and ignored == [4]


def test_sequence_to_sequence_inputs(labelled, dictionary):
    dataset = targets_of(labelled, dictionary, add_to_input=True)
    batch = dataset.collater([dataset[3], dataset[0]])
    eos, pad = dictionary.eos(), dictionary.pad()
    c, end = dictionary.index("C"), dictionary.index("|")
    assert batch["target"][0].tolist() == [c, end, eos, pad, pad, pad]
    assert batch["net_input"]["prev_output_tokens"][0].tolist() == [eos, c, end, pad, pad, pad]


def test_bad_audio_drops_its_transcript(labelled, dictionary):
    (labelled.folder / "1.wav").unlink()
    dataset = targets_of(labelled, dictionary)
    batch = dataset.collater([dataset[0], dataset[1], dataset[3]])
    assert batch["id"].tolist() == [0, 3]
    assert batch["target_lengths"].tolist() == [5, 2]
    # a batch of bad audio only borrows a neighbour that has a transcript: not line 3, which is empty
    assert dataset.collater([dataset[1]])["id"].tolist() == [0]
