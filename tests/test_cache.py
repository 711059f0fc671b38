"""The cache of exports, with real processes, damage, a full disk and folders that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfaccel.cache import Cache, default_folder, default_limit
from hfaccel.errors import UsageError

CONTENT = b"weights" * 1000


def make(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "model.bin").write_bytes(CONTENT)
    (folder / "model.xml").write_text("<model/>")


def never(folder):
    raise AssertionError("the entry must be there")


def content(entry):
    return (entry.path / "sub" / "model.bin").read_bytes()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", limit=2**30)


def test_an_entry_is_made_once(cache):
    with cache.entry("key", make) as entry:
        assert content(entry) == CONTENT and not entry.found and not entry.problem
    with cache.entry("key", never) as entry:
        assert content(entry) == CONTENT and entry.found
    assert [path.name for path in (cache.folder / "entries").iterdir()] == ["key"]
    assert (cache.folder / "entries").stat().st_mode & 0o077 == 0


# Failure and damage


def test_an_export_that_fails_halfway_leaves_nothing(cache):
    def half(folder):
        make(folder)
        raise RuntimeError("no converter for aten::strange")

    with pytest.raises(RuntimeError, match="aten::strange"), cache.entry("key", half):
        pass
    assert list((cache.folder / "entries").iterdir()) == []
    with cache.entry("key", make) as entry:
        assert content(entry) == CONTENT


def truncate(path, position):
    path.write_bytes(path.read_bytes()[: position % max(1, path.stat().st_size)])


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)


def delete(path, position):
    path.unlink()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["manifest.json", "model.xml", "sub/model.bin"]),
    st.sampled_from([truncate, flip, delete]),
    st.integers(0, 10**6),
)
def test_damage_is_repaired(cache, name, damage, position):
    with cache.entry("key", make) as entry:
        damage(entry.path / name, position)
    with cache.entry("key", make) as entry:
        assert content(entry) == CONTENT and not entry.found
    with cache.entry("key", never):
        pass


@pytest.mark.parametrize("odd", ["file", "empty folder", "more files", "folders for files", "link"])
def test_whatever_lies_in_its_place_is_replaced(cache, odd):
    with cache.entry("other", make):
        pass
    place = cache.folder / "entries" / "key"
    if odd == "file":
        place.write_text("not a folder")
    elif odd == "folders for files":
        (place / "manifest.json").mkdir(parents=True)
    elif odd == "link":
        place.symlink_to(place.with_name("nowhere"))
    else:
        place.mkdir()
        if odd == "more files":
            (place / "manifest.json").write_text(json.dumps({}))
            (place / "planted").write_text("x")
    with cache.entry("key", make) as entry:
        assert content(entry) == CONTENT and not (entry.path / "planted").exists()


# Many processes


WORKER = """
import os, sys, time
from pathlib import Path
from hfaccel.cache import Cache
folder, log = map(Path, sys.argv[1:3])
seconds = sys.argv[3]

def make(target):
    with log.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    (target / "model.bin").write_bytes(b"half")
    time.sleep(float(seconds))
    (target / "model.bin").write_bytes(b"whole")

while not (folder / "go").exists():
    time.sleep(0.005)
with Cache(folder).entry("key", make) as entry:
    print((entry.path / "model.bin").read_text())
"""


def start(folder, log, seconds=0.3):
    command = [sys.executable, "-c", WORKER, str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.005)


def test_of_many_processes_one_makes_it(tmp_path):
    log = tmp_path / "log"
    workers = [start(tmp_path, log) for _ in range(8)]
    (tmp_path / "go").touch()
    assert [worker.communicate()[0] for worker in workers] == ["whole\n"] * 8
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_process_leaves_no_lock_and_no_half_entry(tmp_path):
    log = tmp_path / "log"
    first = start(tmp_path, log)
    (tmp_path / "go").touch()
    wait_for(lambda: log.exists() and log.read_text())
    second = start(tmp_path, log)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert second.communicate()[0] == "whole\n"
    assert log.read_text().split() == [str(first.pid), str(second.pid)]


def test_what_killed_processes_left_goes_at_once_and_what_others_make_stays(tmp_path):
    cache, log = Cache(tmp_path), tmp_path / "log"
    with cache.entry("first", make):
        pass
    worker = start(tmp_path, log, seconds=600)
    (tmp_path / "go").touch()
    wait_for(lambda: log.exists() and log.read_text())
    with cache.entry("second", make):
        assert len(names(cache) - {"first", "second"}) == 1  # somebody is at it
    worker.kill()
    worker.communicate()
    with cache.entry("third", make):
        assert names(cache) == {"first", "second", "third"}


def test_a_child_forked_during_an_export_does_not_keep_others_waiting(tmp_path):
    cache = Cache(tmp_path, limit=0)
    with cache.entry("key", make):
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
    try:
        with cache.entry("other", make):
            assert names(cache) == {"other"}  # the child's copy of the lock would have kept "key"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# Bounds


def names(cache):
    return {path.name for path in (cache.folder / "entries").iterdir()}


def age(cache, key, seconds):
    path = cache.folder / "entries" / key
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, limit=3 * len(CONTENT))
    for number, key in enumerate(("a", "b", "c")):
        with cache.entry(key, make):
            pass
        age(cache, key, 100 - number) if key in names(cache) else None
    assert names(cache) == {"b", "c"}
    with cache.entry("b", never):  # used again
        pass
    with cache.entry("d", make):
        pass
    assert names(cache) == {"b", "d"}


def test_entries_in_use_and_the_newest_stay(tmp_path):
    cache = Cache(tmp_path, limit=0)
    with cache.entry("used", make) as used:
        with cache.entry("new", make):
            assert names(cache) == {"used", "new"}
        assert content(used) == CONTENT
    with cache.entry("other", make):
        pass
    assert names(cache) == {"other"}


CROWD = """
import sys
from pathlib import Path
from hfaccel.cache import Cache

def make(target):
    (target / "model.bin").write_bytes(b"whole")

cache = Cache(Path(sys.argv[1]), limit=0)
for number in range(100):
    with cache.entry(f"key{number % 3}", make) as entry:
        assert not entry.problem, entry.problem
        assert (entry.path / "model.bin").read_bytes() == b"whole"
"""


def test_no_process_loses_what_it_uses_to_others_that_make_room(tmp_path):
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in crowd] == [0] * 4
    cache = Cache(tmp_path, limit=0)
    with cache.entry("last", make):
        assert names(cache) == {"last"}


# Disks that refuse


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is refused here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def big(folder):
    (folder / "model.bin").write_bytes(bytes(8 * 2**20))


def silent(folder):
    """As engines in C++ do: the error is lost, the file is short, and a little room is left."""
    left, chunk = 8 * 2**20, 900_000
    with (folder / "model.bin").open("wb", buffering=0) as file:
        while left and shutil.disk_usage(folder).free > chunk:
            left -= file.write(bytes(min(left, chunk)))


def foreign(folder):
    """As engines in C++ do: the error is one of their own."""
    try:
        big(folder)
    except OSError:
        raise RuntimeError("bad stream") from None


def tidy(folder):
    """As OpenVINO does: what it could not finish is gone."""
    try:
        foreign(folder)
    except RuntimeError:
        (folder / "model.bin").unlink()
        raise


def test_a_disk_that_is_full_already_is_not_tried(tmp_path):
    made = []
    with (
        mounted(tmp_path / "small", "size=512k") as folder,
        Cache(folder).entry("key", lambda folder: made.append(make(folder))) as entry,
    ):
        assert "No space left" in entry.problem and content(entry) == CONTENT
    assert len(made) == 1


@pytest.mark.parametrize("write", [big, silent, foreign, tidy])
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, write):
    with mounted(tmp_path / "small", "size=4m") as folder:
        cache = Cache(folder)
        with cache.entry("key", write) as entry:
            assert (entry.path / "model.bin").stat().st_size == 8 * 2**20
            assert "No space left" in entry.problem
        assert not entry.path.exists()  # it was temporary
        assert names(cache) == set()
        with cache.entry("small", make) as entry:  # and smaller ones fit again
            assert not entry.problem


def test_a_read_only_disk_is_read_where_it_can(tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as folder:
        cache = Cache(folder)
        with cache.entry("old", make):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with cache.entry("old", never) as entry:
            assert entry.found and content(entry) == CONTENT
        with cache.entry("new", make) as entry:
            assert "Read-only file system" in entry.problem and content(entry) == CONTENT


def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write everywhere")
        with Cache(tmp_path / "cache").entry("key", make) as entry:
            assert "Permission denied" in entry.problem and content(entry) == CONTENT
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "cache").write_text("")
    with Cache(tmp_path / "cache").entry("key", make) as entry:
        assert "not kept" in entry.problem and content(entry) == CONTENT


def test_a_folder_where_the_lock_should_be(cache):
    (cache.folder / "locks" / "key").mkdir(parents=True)
    with cache.entry("key", make) as entry:
        assert "Is a directory" in entry.problem and content(entry) == CONTENT


def test_nowhere_to_write_is_an_error(cache, monkeypatch):
    (cache.folder / "locks" / "key").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(cache.folder / "nowhere"))
    with pytest.raises(OSError, match="nowhere"), cache.entry("key", make):
        pass


# Settings


def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HFACCEL_CACHE")
    assert default_folder() == tmp_path / "hfaccel"
    monkeypatch.setenv("HFACCEL_CACHE", "~/models")
    assert default_folder() == Path.home() / "models"
    monkeypatch.setenv("HFACCEL_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "hfaccel"


def test_without_a_home_directory_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("HFACCEL_CACHE", "~nobody-of-that-name/models")
    with pytest.raises(UsageError, match="set HFACCEL_CACHE to a folder"):
        default_folder()


@pytest.mark.parametrize(("text", "bytes_"), [("", 16 * 2**30), ("0.5", 2**29), ("0", 0)])
def test_the_limit_is_the_users_choice(monkeypatch, text, bytes_):
    monkeypatch.setenv("HFACCEL_CACHE_LIMIT", text)
    assert default_limit() == bytes_


@pytest.mark.parametrize("text", ["-1", "much", "nan", "inf"])
def test_a_bad_limit_is_refused(monkeypatch, text):
    monkeypatch.setenv("HFACCEL_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match=f"number of GiB, 0 or more, but got '{text}'"):
        default_limit()
