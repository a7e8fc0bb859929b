"""The text demo's data: novels out of an R package, word classes out of WordNet, and probes. No network."""

import importlib
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter

import pytest
from prose import documents, write_documents
from tiny_training import ROOT

from d2v_plugin.data import debian
from d2v_plugin.errors import UserError
from d2v_plugin.eval.text_probe import read_examples

FOLDER = ROOT / "examples" / "text"
NOUNS = "house mouse woman tea hat feeling wonderness gentleness silverness".split()
VERBS = "walk seem be tell listen wander".split()


@pytest.fixture
def scripts(monkeypatch):
    """The modules of examples/text, which import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("r_data", "word_classes", "prepare_prose")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def integer(*values):
    return struct.pack(f">{len(values)}i", *values)


def text_item(text):
    if text is None:
        return integer(9, -1)
    return integer(9 | 1 << 12, len(text.encode())) + text.encode()


def strings(values):
    return integer(16, len(values)) + b"".join(map(text_item, values))


def named(items, kind=19):
    """A list of serialised items with names."""
    names = integer(2 | 1 << 10, 1) + text_item("names") + strings(list(items)) + integer(254)
    return integer(kind | 1 << 9, len(items)) + b"".join(items.values()) + names


def serialised(item, version=3):
    head = b"X\n" + integer(version, 1, 1)
    return head + (integer(5) + b"UTF-8" if version == 3 else b"") + item


def write_r_data(base, objects, version=3):
    """``{name: lines}`` as R's lazy-load files."""
    base.parent.mkdir(parents=True, exist_ok=True)
    data, places = b"", {}
    for name, lines in objects.items():
        content = serialised(strings(lines), version)
        chunk = integer(len(content)) + zlib.compress(content)
        places[name] = integer(13, 2, len(data), len(chunk))
        data += chunk
    empty = integer(19 | 1 << 9, 0) + integer(2 | 1 << 10, 255 | 1 << 8) + strings([]) + integer(254)
    index = named({"variables": named(places), "references": empty, "compressed": integer(10, 1, 1)})
    base.with_suffix(".rdx").write_bytes(zlib.compress(serialised(index, version)))
    base.with_suffix(".rdb").write_bytes(data)


def novel(seed, chapters=12):
    """Lines as Project Gutenberg wraps them."""
    lines = ["A NOVEL", "", "by Somebody", "", "VOLUME I", ""]
    for number, chapter in enumerate(documents(chapters, lines=6, seed=seed), 1):
        lines += [f"CHAPTER {number}", "", "", chapter[0], chapter[1], ""]
        lines += ["", f'"{chapter[2]} _Really_--yes, walked the tea to him was not it,"', f"said the {chapter[3]}", ""]
        lines += [f"But the {chapter[4]} and then the {chapter[5]} with a walk or more of it than was good", "", None]
    return [*lines, "VOLUME II", "", "THE END", "", "A NOTE ON THE TEXT", "", "Not by the author."]


def write_wordnet(folder):
    folder.mkdir(parents=True)
    licence = "  1 This software is provided\n"
    words = {"noun": [*NOUNS, "left", "tear", "letter"], "verb": [*VERBS, "tear", "leave"], "adj": ["silver", "red"]}
    words["adj"] += ["gentle"]
    words["adv"] = ["openly", "silverly", "gently"]
    for name, found in words.items():
        rows = "".join(f"{word} n 1 0 1 0 00000000\n" for word in found)
        (folder / f"index.{name}").write_text(licence + rows)
    (folder / "noun.exc").write_text("mice mouse\n")
    (folder / "verb.exc").write_text("left leave\ntold tell\nwas be\n")


@pytest.fixture
def dest(tmp_path):
    """What dpkg leaves, with the archives beside it, so that nothing is downloaded."""
    for package in ("r-cran-janeaustenr", "wordnet-base"):
        (tmp_path / "dest/unpacked/usr/share/doc" / package).mkdir(parents=True)
        (tmp_path / "dest/debs").mkdir(exist_ok=True)
        (tmp_path / "dest/debs" / f"{package}_1_all.deb").touch()
    base = tmp_path / "dest/unpacked/usr/lib/R/site-library/janeaustenr/data/Rdata"
    write_r_data(base, {name: novel(seed) for seed, name in enumerate(("emma", "persuasion"))})
    write_wordnet(tmp_path / "dest/unpacked/usr/share/wordnet")
    return tmp_path / "dest"


def chapters_of(folder):
    return [c for path in sorted(folder.iterdir()) for c in path.read_text().strip().split("\n\n")]


def test_novels_become_paragraphs_and_probes(scripts, dest, capsys):
    assert scripts["prepare_prose"].main(["--dest", str(dest)]) == 0
    assert "Jane Austen" in capsys.readouterr().out
    train, valid = chapters_of(dest / "train"), chapters_of(dest / "valid")
    assert len(train) + len(valid) == 24 and len(valid) >= 2
    for chapter in train + valid:
        assert len(chapter.splitlines()) == 3
        for word in ("CHAPTER", "VOLUME", "THE END", "NOTE", "_", "Somebody"):
            assert word not in chapter
        assert "Really -- yes, walked" in chapter

    examples = read_examples(dest / "probes" / "word_class.tsv")
    sides = {"fit": train, "score": valid}
    seen = {"fit": set(), "score": set()}
    for example in examples:
        passage = example.passage
        (word,) = passage.words[passage.start : passage.end]
        seen[example.split].add(word)
        assert any(" ".join(passage.words) in chapter for chapter in sides[example.split])
    assert not seen["fit"] & seen["score"] and all(seen.values())
    for split in sides:
        counts = Counter(example.label for example in examples if example.split == split)
        assert len(counts) > 1 and len(set(counts.values())) == 1

    spoken = read_examples(dest / "probes" / "speech.tsv")
    assert {example.label for example in spoken} == {"speech", "narration"}
    for example in spoken:
        assert '"' not in " ".join(example.passage.words) and len(example.passage.words) >= 10
        assert (example.label == "speech") == ("Really" in example.passage.words)


def test_the_same_every_time_and_unpacked_once(scripts, dest):
    def everything():
        return {p: p.read_bytes() for p in dest.rglob("*") if p.suffix in (".txt", ".tsv")}

    assert scripts["prepare_prose"].main(["--dest", str(dest)]) == 0
    first = everything()
    assert scripts["prepare_prose"].main(["--dest", str(dest)]) == 0
    assert everything() == first and len(first) >= 5


def test_own_text(scripts, dest, tmp_path, capsys):
    write_documents(tmp_path / "own" / "my text.txt", documents(30))
    (tmp_path / "own" / "bad.txt").write_bytes(b"caf\xe9\n")
    assert scripts["prepare_prose"].main(["--dest", str(dest), "--data", str(tmp_path / "own")]) == 0
    assert scripts["prepare_prose"].main(["--dest", str(dest)]) == 0  # and the novels after that
    capsys.readouterr()
    assert scripts["prepare_prose"].main(["--dest", str(dest), "--data", str(tmp_path / "own")]) == 0
    printed = capsys.readouterr().out
    found = chapters_of(dest / "train") + chapters_of(dest / "valid")
    assert sorted(found) == sorted("\n".join(document) for document in documents(30))
    assert "speech.tsv: nothing found" in printed and "Jane Austen" not in printed
    write_documents(tmp_path / "one.txt", documents(1))
    assert scripts["prepare_prose"].main(["--dest", str(dest), "--data", str(tmp_path / "one.txt")]) == 2
    assert "put a blank line between documents" in capsys.readouterr().err


def test_word_classes(scripts, dest):
    classes = scripts["word_classes"].WordClasses(dest / "unpacked/usr/share/wordnet")
    expected = {
        "house": "noun",
        "houses": "noun",
        "mice": "noun",
        "women": "noun",
        "walked": "verb",
        "walking": "verb",
        "told": "verb",
        "redder": None,  # English doubles the d, WordNet's rules do not undo it
        "gentler": "adjective",
        "openly": "adverb",
        "left": None,  # noun, and form of a verb
        "tears": None,
        "feelings": "noun",
        "with": None,
        "House": None,
        "tea-hat": None,
    }
    assert {word: classes.only_class(word) for word in expected} == expected
    (dest / "unpacked/usr/share/wordnet/index.adv").unlink()
    with pytest.raises(UserError, match="index.adv is missing"):
        scripts["word_classes"].WordClasses(dest / "unpacked/usr/share/wordnet")


@pytest.mark.parametrize("version", [2, 3])
def test_r_data(scripts, tmp_path, version):
    objects = {"a": ["one", None, "", "Grüße"], "b": []}
    write_r_data(tmp_path / "Rdata", objects, version)
    assert scripts["r_data"].read_data(tmp_path / "Rdata") == objects


def test_r_objects(scripts):
    numbers = integer(14, 2) + struct.pack(">2d", 0.5, -1)
    tagged = integer(2 | 1 << 10, 1) + text_item("x") + integer(13, 1, 7)
    tagged += integer(2 | 1 << 10, 255 | 1 << 8) + integer(10, 1, 0) + integer(254)
    item = named({"numbers": numbers, "nothing": integer(254), "pairs": tagged})
    # a symbol is numbered when it is read: "x" is the first here, and "x" again is a reference to it
    found = scripts["r_data"].Serialised(serialised(item)).read()
    assert found == {"numbers": [0.5, -1.0], "nothing": None, "pairs": {"x": [0]}}


@pytest.mark.parametrize("damage", ["missing", "cut", "not R", "other type"])
def test_damaged_r_data_is_one_line(scripts, tmp_path, damage):
    base = tmp_path / "Rdata"
    write_r_data(base, {"a": ["text"] * 50})
    if damage == "missing":
        base.with_suffix(".rdb").unlink()
    elif damage == "cut":
        base.with_suffix(".rdb").write_bytes(base.with_suffix(".rdb").read_bytes()[:-20])
    elif damage == "not R":
        base.with_suffix(".rdx").write_bytes(zlib.compress(b"something else"))
    else:
        base.with_suffix(".rdx").write_bytes(zlib.compress(serialised(integer(3, 0))))
    with pytest.raises(UserError, match="delete the folder") as caught:
        scripts["r_data"].read_data(base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trouble", ["no apt-get", "no network"])
def test_failed_download_says_what_to_do(scripts, tmp_path, capsys, monkeypatch, trouble):
    if trouble == "no apt-get":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: name)
        failed = subprocess.CompletedProcess([], 100, "", "W: sandbox\nE: Unable to locate package\nW: more\n")
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    assert scripts["prepare_prose"].main(["--dest", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "MODALITY=text DATA=/path/to/texts" in error and str(tmp_path / "debs") in error
    assert not (tmp_path / "debs" / "part").exists()


def test_packages_are_downloaded_whole_and_once(tmp_path, monkeypatch):
    calls = []

    def tool(command, cwd, **_):
        calls.append(command[0])
        if command[0] == "apt-get":
            assert cwd == tmp_path / "debs" / "part"
            (cwd / f"{command[2]}_1_all.deb").write_text("content")
        else:
            (tmp_path / "unpacked/usr/share/doc/some-package").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", tool)
    for _ in range(2):
        assert debian.fetch_packages(["some-package"], tmp_path, "or not") == tmp_path / "unpacked"
    assert calls == ["apt-get", "dpkg"]
    assert [path.name for path in (tmp_path / "debs").iterdir()] == ["some-package_1_all.deb"]

    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    with pytest.raises(UserError, match="left no file"):
        debian.fetch_packages(["other"], tmp_path, "or not")
