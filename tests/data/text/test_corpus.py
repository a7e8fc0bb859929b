"""Raw text as a stream: documents, pieces, gzip, lines that are no text, and the division."""

import gzip

import pytest

from d2v_plugin.data.audio.building import Recording, divide
from d2v_plugin.data.text import corpus as text_corpus
from d2v_plugin.data.text.corpus import BadLines, Corpus, Division, find_sources
from d2v_plugin.errors import UserError


def documents(*paths, limit=-1, **options):
    """Every document's lines, joined over its pieces, and the counter of bad lines."""
    bad, found = BadLines(limit), []
    for piece in Corpus(find_sources(paths), **options).pieces(bad):
        if piece.starts:
            found.append([])
        found[-1] += [line.decode(errors="replace") for line in piece.lines]
    return found, bad


def test_documents_end_at_blank_lines_and_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n two \r\n\r\n \t\n\nthree")
    with gzip.open(tmp_path / "b.gz", "wb") as file:
        file.write(b"\n\nfour\nfive\n\n")
    (tmp_path / "c.md").write_text("not looked at")
    found, bad = documents(tmp_path)
    assert found == [["one", "two"], ["three"], ["four", "five"]] and not bad.kinds
    # a file by its name is read whatever its suffix, and once
    assert documents(tmp_path / "c.md", tmp_path / "c.md")[0] == [["not looked at"]]


def test_documents_can_end_after_some_lines(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n3\n4\n5\n\n6\n")
    found, _ = documents(tmp_path, document_lines=2)
    assert found == [["1", "2"], ["3", "4"], ["5"], ["6"]]


def test_long_documents_come_in_pieces(tmp_path):
    lines = [f"{n} " + "x" * 1000 for n in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n\nend\n")
    corpus = Corpus(find_sources([tmp_path]))
    pieces = list(corpus.pieces(BadLines(0)))
    assert [piece.starts for piece in pieces] == [True, False, False, False, True]
    assert max(sum(map(len, piece.lines)) for piece in pieces) < text_corpus.PIECE_BYTES + 2000
    for piece in pieces[:4]:
        assert piece.lines[0].decode() == lines[piece.line - 1]
    assert pieces[4].line == 202 and corpus.bytes_read == corpus.total_bytes
    assert documents(tmp_path)[0] == [lines, ["end"]]


def test_lines_that_never_end_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(text_corpus, "LONGEST_LINE", 100)
    (tmp_path / "a.txt").write_text("a\n" + "x" * 350 + "\nb\n" + "y" * 99 + "\nc\n" + "z" * 500)
    found, bad = documents(tmp_path)
    assert found == [["a", "b", "y" * 99, "c"]]
    assert bad.kinds == {text_corpus.TOO_LONG: 2}
    lines = [piece.line for piece in Corpus([tmp_path / "a.txt"]).pieces(BadLines(-1))]
    assert lines == [1, 3]  # numbers stay those of the file


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_archive_keeps_what_can_be_read(tmp_path, damage):
    whole = gzip.compress("\n".join(f"line {n * n}" for n in range(5000)).encode())
    (tmp_path / "a.gz").write_bytes(whole[: len(whole) // 2] + (b"" if damage == "cut" else b"\xff" * 300))
    (tmp_path / "b.txt").write_text("fine")
    found, bad = documents(tmp_path)
    assert found[0][:2] == ["line 0", "line 1"] and found[-1] == ["fine"]
    assert bad.kinds == {text_corpus.DAMAGED: 1}


def test_bad_lines_stop_above_the_limit(tmp_path, capsys):
    bad = BadLines(2, shown=1)
    bad.record("not UTF-8", tmp_path / "a.txt", 1)
    bad.record("not UTF-8", tmp_path / "a.txt", 2)
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match=r"a.txt:7: with NUL bytes.* 3 lines .* --max-bad-lines allows 2.*iconv"):
        bad.record("with NUL bytes", tmp_path / "a.txt", 7)
    assert bad.summary() == "left out 3 lines: 2 not UTF-8, 1 with NUL bytes"
    with pytest.raises(UserError):
        BadLines(0).record("not UTF-8", tmp_path, 1)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("Grüße".encode(), None),
        ("Grüße".encode("latin1"), text_corpus.NOT_UTF8),
        ("\ufeffhello".encode("utf-16-le"), text_corpus.NOT_UTF8),
        ("hello".encode("utf-16-le"), text_corpus.NUL),
    ],
)
def test_decode(line, fault):
    assert text_corpus.decode(line)[1] == fault


def test_missing_text_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_sources([tmp_path / "no.txt"])
    with pytest.raises(UserError, match="ends with .txt, .text, .gz"):
        find_sources([tmp_path])


def test_division_is_the_manifests(tmp_path):
    keys = [f"document {n}" for n in range(400)]
    division = Division({"valid": 0.1, "test": 0.05}, seed=3)
    found = {key: division.survey(key) for key in keys}
    division.settle()
    by_manifest = divide([Recording(key, 1, key) for key in keys], {"valid": 0.1, "test": 0.05}, seed=3)
    for split, recordings in by_manifest.items():
        assert {r.key for r in recordings} == {key for key, place in found.items() if place == split}
        assert division.documents[split] == len(recordings)
    assert all(division.split(key) == place for key, place in found.items())


def test_division_gives_every_split_a_document():
    division = Division({"valid": 1e-4, "test": 1e-4})
    keys = ["a", "b", "c"]
    for key in (*keys, *keys):
        division.survey(key)
    division.settle()
    assert sorted(map(division.split, keys)) == ["test", "train", "valid"]


@pytest.mark.parametrize("keys", [["a"], ["a", "a", "a"]])
def test_one_document_cannot_be_divided(keys):
    division = Division({"valid": 1e-4})
    for key in keys:
        division.survey(key)
    with pytest.raises(UserError, match=r"--document-lines 1000.*--valid"):
        division.settle()
    whole = Division({"valid": 0.0})
    assert whole.survey("a") == "train"
    whole.settle()
