"""Transcripts and label files."""

import pytest

from d2v_plugin.data.audio.transcripts import (
    letters,
    normalise,
    read_transcripts,
    spell_numbers,
    write_dictionary,
    write_labels,
)
from d2v_plugin.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello,  world!", "HELLO WORLD"),
        ("I\u2019m \u201chere\u201d, 'there' & re-recorded...", "I'M HERE THERE RE RECORDED"),
        ("Übermorgen, año, нет", "ÜBERMORGEN AÑO НЕТ"),
        ("e\u0301te\u0301", "ÉTÉ"),
        ("... !", ""),
    ],
)
def test_normalise(text, words):
    assert normalise(text) == words


def test_letters():
    assert letters("HI YOU") == "H I | Y O U |"
    assert letters("") == ""


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("0", "zero"),
        ("13", "thirteen"),
        ("40", "forty"),
        ("99", "ninety nine"),
        ("100", "one hundred"),
        ("500", "five hundred"),
        ("8500", "eighty five hundred"),
        ("3000", "three thousand"),
        ("1234", "one two three four"),
        ("162", "one six two"),
        ("007", "zero zero seven"),
        ("28.8", "twenty eight point eight"),
        ("3D, press 1.", "three D, press one ."),
    ],
)
def test_numbers(digits, words):
    assert " ".join(spell_numbers(digits).split()) == words


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'path,text\na.wav,"one, two"\nb.wav,\n'),
        ("t.tsv", "path\ttext\textra\na.wav\tone, two\t1\nb.wav\t\t2\n"),
        ("t.jsonl", '{"path": "a.wav", "text": "one, two"}\n\n{"path": "b.wav", "text": ""}\n'),
    ],
)
def test_transcripts(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_transcripts(tmp_path / name) == {"a.wav": "one, two", "b.wav": ""}


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("t.txt", "", "must be a .csv"),
        ("t.csv", "file,words\na,b\n", ":2: needs the fields path and text"),
        ("t.csv", "path,text\na,b\na,c\n", ":3: a stands there a second time"),
        ("t.jsonl", '{"path": "a"}\n', ":1: needs"),
        ("t.jsonl", "[1]\n", ":1: needs"),
        ("t.jsonl", '{"path": \n', ":1: not a line of JSON"),
    ],
)
def test_bad_transcripts(tmp_path, name, content, part):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_transcripts(tmp_path / name)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_missing_transcripts(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_transcripts(tmp_path / "no.csv")


def test_label_files_load_as_a_fairseq_dictionary(tmp_path):
    from fairseq.data import Dictionary

    write_labels(tmp_path, "train", ["HI YOU", "HO"])
    assert write_dictionary(tmp_path, ["HI YOU", "HO"]) == 6
    assert (tmp_path / "train.ltr").read_text() == "H I | Y O U |\nH O |\n"
    assert (tmp_path / "train.wrd").read_text() == "HI YOU\nHO\n"
    assert (tmp_path / "dict.ltr.txt").read_text() == "| 3\nH 2\nO 2\nI 1\nU 1\nY 1\n"
    assert len(Dictionary.load(str(tmp_path / "dict.ltr.txt"))) == 6 + 4
