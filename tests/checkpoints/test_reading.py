"""Reading: what a good file gives back, and the line a bad one gets."""

import argparse
import collections
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from d2v_plugin.checkpoints import read_checkpoint, write_checkpoint
from d2v_plugin.checkpoints.reading import RefusedClassError
from d2v_plugin.errors import UserError


class Payload:
    """Its unpickling creates the file named in ``MARKER``, as an attacker's would run a command."""

    def __reduce__(self):
        return (Path.touch, (Path("payload-ran"),))


class Harmless:
    """A user's own class in a checkpoint."""


def small_state() -> dict:
    return {"model": {"w": torch.arange(1000.0), "h": torch.ones(3, dtype=torch.float16)}, "args": None}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(small_state(), path)
    return path


@pytest.mark.parametrize("mmap", [True, False])
def test_plain_state_comes_back(saved, mmap):
    state = read_checkpoint(saved, keys=["model"], mmap=mmap)
    assert torch.equal(state["model"]["w"], torch.arange(1000.0))
    assert state["model"]["h"].dtype == torch.float16


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_classes_come_back(tmp_path, zipped):
    from fairseq.data.dictionary import Dictionary

    letters = Dictionary()
    letters.add_symbol("a")
    state = {
        "args": argparse.Namespace(lr=[0.1], data="x"),
        "cfg": OmegaConf.create({"task": {"labels": "ltr", "n": 3, "f": 0.5, "l": [1, None]}}),
        "task_state": {"target_dictionary": letters},
        "extra_state": {"best": np.float64(3.5), "a": np.arange(3), "order": collections.OrderedDict(a=1)},
        "path": Path("a/b"),
    }
    path = tmp_path / "old.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)

    read = read_checkpoint(path)

    assert read["args"] == state["args"]
    assert read["cfg"] == state["cfg"]
    assert read["task_state"]["target_dictionary"].indices == letters.indices
    assert read["extra_state"]["best"] == 3.5
    assert read["extra_state"]["a"].tolist() == [0, 1, 2]
    assert read["extra_state"]["order"] == {"a": 1}
    assert read["path"] == Path("a/b")


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_does_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "x": Payload()}, "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedClassError, match=r"names builtins\.getattr|names pathlib\.Path\.touch"):
        read_checkpoint("evil.pt")
    assert not Path("payload-ran").exists()
    # The file is a real attack: the unrestricted reader runs it.
    torch.load("evil.pt", weights_only=False)
    assert Path("payload-ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_own_class_is_named_and_can_be_allowed(tmp_path, monkeypatch, zipped):
    path = tmp_path / "own.pt"
    torch.save({"model": {}, "x": Harmless()}, path, _use_new_zipfile_serialization=zipped)
    name = f"{__name__}.Harmless"
    with pytest.raises(RefusedClassError, match=f"names {name}.*D2V_ALLOW_CLASSES={name}"):
        read_checkpoint(path)
    assert isinstance(read_checkpoint(path, allow=[name])["x"], Harmless)
    monkeypatch.setenv("D2V_ALLOW_CLASSES", f"other.Thing, {name}")
    assert isinstance(read_checkpoint(path)["x"], Harmless)


def test_allowed_class_that_is_not_installed_is_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"x": Harmless()}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, data.replace(b"Harmless", b"Vanished"))
    name = f"{__name__}.Vanished"
    with pytest.raises(RefusedClassError, match=f"holds a {name}, which cannot be imported"):
        read_checkpoint(tmp_path / "y.pt", allow=[name])


def test_missing_file_names_its_neighbours(saved):
    with pytest.raises(UserError, match=r"no checkpoint at .*other\.pt.*in this folder: model\.pt"):
        read_checkpoint(saved.with_name("other.pt"))
    with pytest.raises(UserError, match=r"there is no folder"):
        read_checkpoint(saved.parent / "gone" / "other.pt")


def test_folder_and_empty_file(saved):
    with pytest.raises(UserError, match="is a folder; name a checkpoint in it"):
        read_checkpoint(saved.parent)
    saved.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_checkpoint(saved)


@pytest.mark.parametrize("keep", [17, 700, -1, -200])
def test_truncated_file(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(UserError, match="is truncated"):
        read_checkpoint(saved)


def test_one_flipped_bit_in_a_tensor_is_found(saved):
    data = bytearray(saved.read_bytes())
    # 500.0 stands once in the file, in the middle of the tensor.
    at = data.index(torch.tensor(500.0).numpy().tobytes())
    data[at + 2] ^= 1
    saved.write_bytes(data)
    # torch itself reads a wrong number without a word, which is why the check sums are compared.
    assert torch.load(saved)["model"]["w"][500] != 500.0
    with pytest.raises(UserError, match=r"is damaged \(check sum of .*data/"):
        read_checkpoint(saved)


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><html>", b"\x89PNG\r\n\x1a\n" + bytes(40), b"RIFF1234WAVEfmt "])
def test_something_else_is_not_a_checkpoint(tmp_path, data):
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a checkpoint"):
        read_checkpoint(path)


def test_safetensors_file_is_recognised(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="is a safetensors file"):
        read_checkpoint(tmp_path / "x.pt")


def test_zip_and_pickle_that_torch_did_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "b.pt")


def test_wrong_contents_are_named(tmp_path):
    write_checkpoint([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list rather than a dictionary"):
        read_checkpoint(tmp_path / "list.pt")
    write_checkpoint({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"has no model \(found: state_dict\)"):
        read_checkpoint(tmp_path / "other.pt", keys=["model"])


def test_array_of_objects_is_refused(tmp_path):
    torch.save({"x": np.array([Harmless()], dtype=object)}, tmp_path / "x.pt")
    with pytest.raises(RefusedClassError, match="Harmless"):
        read_checkpoint(tmp_path / "x.pt")


def test_paths_written_by_another_python_are_known():
    from d2v_plugin.checkpoints.allowed import is_allowed, resolve

    assert is_allowed("pathlib._local.PosixPath", frozenset())
    assert resolve("pathlib._local.PosixPath") is resolve("pathlib.PosixPath")
    assert not is_allowed("pathlib._local.os", frozenset())


def test_every_allowed_name_exists():
    from d2v_plugin.checkpoints.allowed import ALLOWED_NAMES, resolve

    for name in ALLOWED_NAMES:
        # numpy.core is the name before NumPy 2, kept there for old files.
        assert resolve(name) is not None


def test_reading_does_not_import_fairseq(saved):
    code = (
        "import sys; from d2v_plugin.checkpoints import read_checkpoint; "
        f"read_checkpoint({str(saved)!r}); sys.exit('fairseq' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
