"""Files that are replaced as a whole, and what is no file."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from hfaccel.writing import replace_text


def test_a_file_is_replaced_and_keeps_its_rights(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    path.chmod(0o640)
    replace_text(path, "after")
    assert path.read_text() == "after" and path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_goes_on_leading_to_the_file(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link"
    link.symlink_to(path)
    replace_text(link, "first")
    replace_text(link, "second")
    assert link.is_symlink() and path.read_text() == "second"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_text()))
    reader.start()
    replace_text(path, "told")
    reader.join()
    assert got == ["told"] and path.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_device_stays_a_device(tmp_path):
    full = tmp_path / "full"
    os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    with pytest.raises(OSError, match="No space left"):
        replace_text(full, "x")
    assert full.is_char_device()


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        replace_text(tmp_path, "x")


@pytest.mark.parametrize("ending", [OSError("no room"), KeyboardInterrupt()])
def test_what_ends_the_writing_leaves_the_former_file(tmp_path, monkeypatch, ending):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fails(descriptor):
        raise ending

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(type(ending)):
        replace_text(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
