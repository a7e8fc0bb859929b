"""Writing: whatever happens, the previous checkpoint or the whole new one is there."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from d2v_plugin.checkpoints import copy_checkpoint, read_checkpoint, write_checkpoint, writing
from d2v_plugin.errors import UserError


def state(value: float, size: int = 1000) -> dict:
    return {"model": {"w": torch.full((size,), value)}}


def value_of(path: Path) -> float:
    weights = read_checkpoint(path)["model"]["w"].unique()
    assert len(weights) == 1
    return weights.item()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    write_checkpoint(state(1.0), path)
    write_checkpoint(state(2.0), path)
    assert value_of(path) == 2.0
    assert names(tmp_path) == ["checkpoint_last.pt"]


def test_file_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_checkpoint(state(1.0), tmp_path / "x.pt")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.pt").stat().st_mode) == 0o640


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("good_writes", [0, 1, 5])
def test_full_disk_keeps_the_last_good_one(tmp_path, monkeypatch, code, good_writes):
    path = tmp_path / "checkpoint_last.pt"
    write_checkpoint(state(1.0), path)
    original = writing._RememberError.write
    calls = iter(range(1000))

    def write(self, data):
        if next(calls) < good_writes:
            return original(self, data)
        self.error = OSError(code, os.strerror(code))
        raise self.error

    monkeypatch.setattr(writing._RememberError, "write", write)
    with pytest.raises(UserError, match=r"cannot save .*checkpoint_last\.pt.*GiB free.*untouched.*make room"):
        write_checkpoint(state(2.0), path)
    assert value_of(path) == 1.0
    assert names(tmp_path) == ["checkpoint_last.pt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_after_the_last_byte_keeps_the_last_good_one(tmp_path, monkeypatch, step):
    path = tmp_path / "x.pt"
    write_checkpoint(state(1.0), path)

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writing.os, step, fail)
    with pytest.raises(UserError, match="Input/output error"):
        write_checkpoint(state(2.0), path)
    monkeypatch.undo()
    assert value_of(path) == 1.0
    assert names(tmp_path) == ["x.pt"]


def test_file_size_limit_of_the_system(tmp_path):
    """The kernel, not a stand-in, refuses the bytes: torch's own message for it is "unexpected pos"."""
    write_checkpoint(state(1.0), tmp_path / "x.pt")
    code = """
import resource, signal, sys, torch
from d2v_plugin.checkpoints import write_checkpoint, copy_checkpoint
from d2v_plugin.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for save in (lambda: write_checkpoint({"w": torch.ones(100_000)}, "x.pt"), lambda: copy_checkpoint("big", "x.pt")):
    try:
        save()
    except UserError as error:
        print(error)
"""
    (tmp_path / "big").write_bytes(bytes(300_000))
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    ).stdout.splitlines()
    assert len(out) == 2
    assert all("cannot save x.pt: File too large" in line for line in out)
    assert value_of(tmp_path / "x.pt") == 1.0
    assert names(tmp_path) == ["big", "x.pt"]


def test_object_that_cannot_be_pickled_keeps_the_last_good_one(tmp_path):
    path = tmp_path / "x.pt"
    write_checkpoint(state(1.0), path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        write_checkpoint({"model": threading.Lock()}, path)
    assert value_of(path) == 1.0
    assert names(tmp_path) == ["x.pt"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        write_checkpoint(state(1.0), tmp_path / "gone" / "x.pt")


def test_killed_writer_leaves_the_old_file_and_its_remains_are_removed(tmp_path):
    path = tmp_path / "x.pt"
    write_checkpoint(state(1.0), path)
    code = """
import os, signal, torch
from d2v_plugin.checkpoints import writing
writing.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
writing.write_checkpoint({"w": torch.ones(1000)}, "x.pt")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120).returncode == -9
    assert value_of(path) == 1.0
    assert len(names(tmp_path)) == 2
    write_checkpoint(state(2.0), path)
    assert value_of(path) == 2.0
    assert names(tmp_path) == ["x.pt"]


def test_leftovers_of_other_machines_stay_for_a_day(tmp_path):
    young, old = tmp_path / ".x.pt.elsewhere-1-0.tmp", tmp_path / ".x.pt.elsewhere-2-0.tmp"
    for leftover in (young, old):
        leftover.write_bytes(b"x")
    os.utime(old, (0, 0))
    write_checkpoint(state(1.0), tmp_path / "x.pt")
    assert names(tmp_path) == [young.name, "x.pt"]


def test_readers_and_writers_at_once_see_whole_files(tmp_path):
    path = tmp_path / "x.pt"
    write_checkpoint(state(0.0, 50_000), path)
    failures = []

    def write(value: float) -> None:
        try:
            for _ in range(8):
                write_checkpoint(state(value, 50_000), path)
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    writers = [threading.Thread(target=write, args=(float(i),)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert value_of(path) in (0.0, 1.0, 2.0)
    for writer in writers:
        writer.join()
    assert failures == []
    assert names(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("kernel_copy", [True, False])
def test_copy_is_independent_and_replaces_whole(tmp_path, monkeypatch, kernel_copy):
    if not kernel_copy:

        def refuse(*args):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(writing.os, "copy_file_range", refuse)
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    write_checkpoint(state(1.0), source)
    write_checkpoint(state(5.0), target)
    copy_checkpoint(source, target)
    assert source.read_bytes() == target.read_bytes()
    # A tool that rewrites one of the names in place leaves the other alone.
    with source.open("r+b") as file:
        file.write(bytes(100))
    assert value_of(target) == 1.0


def test_failed_copy_keeps_the_target(tmp_path, monkeypatch):
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    write_checkpoint(state(1.0), source)
    write_checkpoint(state(5.0), target)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "copy_file_range", full)
    with pytest.raises(UserError, match="No space left on device"):
        copy_checkpoint(source, target)
    assert value_of(target) == 5.0
    assert names(tmp_path) == ["a.pt", "b.pt"]
