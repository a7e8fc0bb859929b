"""Descriptors, label files, and AudioSet's tables: what is read, what is written, and one line for what is wrong."""

import numpy as np
import pytest
import torch

from d2v_plugin.cli.main import main
from d2v_plugin.data.audio.audioset import read_clips
from d2v_plugin.data.audio.class_dataset import ClassDataset
from d2v_plugin.data.audio.classes import load_classes, read_descriptors
from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.errors import UserError

AUDIOSET = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/068hy,"Domestic animals, pets"
"""
TABLE = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
--aQuot3, 30.000, 40.000, "/m/05zppz,/m/09x0r"
Yb_c-D, 0.000, 10.000, "/m/068hy"
e-f, 20.5, 30.5, "/m/09x0r,/m/068hy"
"""


def one_line(match, call, *args, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [AUDIOSET, AUDIOSET.split("\n", 1)[1], "2,/m/068hy\n\n0,/m/09x0r\n1,/m/05zppz\n"])
def test_descriptors_with_and_without_column_names(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    assert read_descriptors(path) == {"/m/09x0r": 0, "/m/05zppz": 1, "/m/068hy": 2}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0,a\n1\n", r"labels\.csv:2: expected `number,label`, got '1'"),
        ("0,a\nx,b\n", r"labels\.csv:2: expected `number,label`, got 'x,b'"),
        ("0,a\n1,a\n", r"labels\.csv:2: label a is there twice"),
        ("0,a\n2,b\n", r"its 2 classes must be numbered 0 to 1"),
        ("index,mid\n", "names no class"),
        ("", "names no class"),
    ],
)
def test_wrong_descriptors(tmp_path, text, match):
    (tmp_path / "labels.csv").write_text(text)
    one_line(match, read_descriptors, tmp_path / "labels.csv")


def test_missing_descriptors(tmp_path):
    one_line("task.label_descriptors names it", read_descriptors, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"0,\xff\n")
    one_line("comma-separated UTF-8", read_descriptors, tmp_path / "labels.csv")


def load(path, rows=(0, 2), total=3):
    rows = np.array(rows)
    return load_classes(path, 5, rows=rows, total=total, manifest_path="m.tsv", descriptors="d.csv")


def test_labels_of_the_kept_entries(tmp_path):
    path = tmp_path / "train.lbl"
    path.write_text("0\t10\t4,1\n0\t10\t0\n30.0\t40.0\t 2 , 2\t more\n")
    labels = load(path)
    assert [labels[i].tolist() for i in range(2)] == [[1, 4], [2]]
    assert labels.lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0\t10\t1\n", r"train\.lbl has 1 lines but m\.tsv has 3 entries"),
        ("0\t1\t1\n" * 4, r"train\.lbl has 4 lines but m\.tsv has 3 entries"),
        ("0\t10\t1\nx\n0\t10\n", r"train\.lbl:3: has no class in its third column"),
        ("0\t10\t\nx\n0\t10\t1\n", r"train\.lbl:1: has no class in its third column"),
        ("0\t10\t1\nx\n0\t10\t1,dog\n", r"train\.lbl:3: 'dog' is no class number"),
        ("0\t10\t1\nx\n0\t10\t-1\n", r"train\.lbl:3: '-1' is no class number"),
        ("0\t10\t1\nx\n0\t10\t0,5\n", r"train\.lbl:3: class 5 is not among the 5 of d\.csv, .* 0 to 4"),
    ],
)
def test_wrong_labels(tmp_path, text, match):
    (tmp_path / "train.lbl").write_text(text)
    one_line(match, load, tmp_path / "train.lbl")


def test_missing_labels(tmp_path):
    one_line("this label file does not exist; task.labels names its suffix", load, tmp_path / "train.lbl")


def test_batches_hold_the_classes_of_what_could_be_read(corpus, tmp_path):
    for n, samples in enumerate((2000, 2500, 3000)):
        corpus.add(f"{n}.wav", samples)
    manifest = load_manifest(corpus.manifest())
    (tmp_path / "train.lbl").write_text("0\t1\t0\n0\t1\t1,3\n0\t1\t4\n")
    labels = load(tmp_path / "train.lbl", rows=(0, 1, 2))
    dataset = ClassDataset(AudioDataset(manifest, 16000, pad=True), labels, 5)
    assert not dataset.single_label
    batch = dataset.collater([dataset[i] for i in range(3)])
    expected = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]).float()
    assert torch.equal(batch["label"], expected) and batch["net_input"]["label"] is batch["label"]
    (corpus.folder / "1.wav").unlink()
    assert torch.equal(dataset.collater([dataset[i] for i in range(3)])["label"], expected[[0, 2]])
    # a batch of unusable files alone is stood in for
    assert torch.equal(dataset.collater([dataset[1]])["label"], expected[[2]])


# -- AudioSet --------------------------------------------------------------------------------------


@pytest.fixture
def audioset(corpus, tmp_path):
    for name in ("clips/--aQuot3.wav", "clips/YYb_c-D.wav", "clips/e-f.wav"):
        corpus.add(name, 2000)
    (tmp_path / "labels.csv").write_text(AUDIOSET)
    (tmp_path / "table.csv").write_text(TABLE)
    return corpus


def convert(folder, manifest="train.tsv", *more):
    arguments = ["manifest", "audioset-labels", folder / "table.csv", "--manifest", folder / manifest]
    return main([str(word) for word in (*arguments, "--descriptors", folder / "labels.csv", *more)])


def test_labels_of_audiosets_clips(audioset, tmp_path, capsys):
    audioset.manifest()
    assert convert(tmp_path) == 0
    assert (tmp_path / "train.lbl").read_text() == "30.000\t40.000\t0,1\n0.000\t10.000\t2\n20.5\t30.5\t0,2\n"
    assert "3 entries, 3 classes" in capsys.readouterr().out
    assert convert(tmp_path, "train.tsv", "--output", tmp_path / "other.lbl") == 0
    assert (tmp_path / "other.lbl").read_bytes() == (tmp_path / "train.lbl").read_bytes()


def test_labels_are_checked_beside_their_descriptors(audioset, tmp_path, capsys):
    manifest = audioset.manifest()
    (tmp_path / "labels.csv").rename(tmp_path / "label_descriptors.csv")
    (tmp_path / "train.lbl").write_text("0\t1\t0,1\n0\t1\t1\n0\t1\t0\n")
    check = ["manifest", "check", str(manifest), "--labels", "lbl"]
    assert main(check) == 0
    assert "labels      4, of 2 of 3 classes" in capsys.readouterr().out
    (tmp_path / "train.lbl").write_text("0\t1\t0\n0\t1\t3\n0\t1\t0\n")
    assert main(check) == 1
    assert "train.lbl:2: class 3 is not among the 3 of" in capsys.readouterr().out


def test_the_same_file_as_upstreams_script(audioset, tmp_path):
    """Upstream's script, run as a program, where recordings are named as it wants them."""
    import subprocess
    import sys

    import fairseq

    script = fairseq.__path__[0] + "/examples/data2vec/scripts/convert_audioset_labels.py"
    (tmp_path / "clips" / "YYb_c-D.wav").rename(tmp_path / "clips" / "Yb_c-D.wav")
    path = audioset.manifest()
    path.write_text(path.read_text().replace("YYb_c-D", "Yb_c-D"))
    words = ["--manifest", path, "--descriptors", tmp_path / "labels.csv", "--output", tmp_path / "theirs.lbl"]
    subprocess.run([sys.executable, script, tmp_path / "table.csv", *words], check=True)
    assert convert(tmp_path) == 0
    theirs, ours = ((tmp_path / name).read_text().splitlines() for name in ("theirs.lbl", "train.lbl"))
    # the order of a clip's classes is the only difference
    split = [[[*line.split("\t")[:2], sorted(line.split("\t")[2].split(","))] for line in f] for f in (theirs, ours)]
    assert split[0] == split[1] and len(ours) == 3


def test_wrong_tables(audioset, tmp_path, capsys):
    classes = read_descriptors(tmp_path / "labels.csv")
    for text, match in (
        ("abc, 0, 10\n", r"table\.csv:1: expected `id, start, end"),
        ('# x\nabc, 0, 10, "/m/none"\n', r"table\.csv:2: label '/m/none' is not in the descriptors"),
        ("# nothing\n", "names no clip"),
    ):
        (tmp_path / "table.csv").write_text(text)
        one_line(match, read_clips, tmp_path / "table.csv", classes)
    one_line("this table does not exist", read_clips, tmp_path / "gone.csv", classes)
    (tmp_path / "table.csv").write_text("\n".join(TABLE.splitlines()[:4]) + "\n")
    audioset.manifest()
    assert convert(tmp_path) == 2
    assert "2 of its 3 entries are not in the table (first YYb_c-D)" in capsys.readouterr().err
    audioset.list("clips/empty.wav", 0)
    audioset.manifest()
    assert convert(tmp_path) == 2
    assert "1 entries have 0 frames" in capsys.readouterr().err
