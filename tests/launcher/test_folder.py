"""The folder for models on a local disk: ours alone, or none. It stands in a place open to everybody."""

from __future__ import annotations

import json
import os
import stat

import pytest
from launching import needs_root, patched, start

from hfaccel.launcher.start import make_private_folder


@pytest.fixture
def place(tmp_path):
    """As /var/tmp: everybody may make files there, and nobody may remove those of others."""
    folder = tmp_path / "open to all"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder / "huggingface-1000"


def test_it_is_made_for_its_owner_alone(place):
    before = os.umask(0)
    try:
        assert make_private_folder(str(place)) == ""
    finally:
        os.umask(before)
    assert place.is_dir() and stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_one_of_ours_is_used_as_it_is(place, mode):
    place.mkdir()
    (place / "a model").touch()
    place.chmod(mode)
    assert make_private_folder(str(place)) == ""
    assert stat.S_IMODE(place.stat().st_mode) == mode and (place / "a model").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720, 0o702])
def test_one_that_others_may_write_to_is_not_used(place, mode):
    place.mkdir()
    place.chmod(mode)
    assert make_private_folder(str(place)) != ""


@needs_root
def test_one_of_somebody_else_is_not_used(place):
    place.mkdir(mode=0o700)
    os.chown(place, 12345, -1)
    assert "belongs to somebody else" in make_private_folder(str(place))


def test_a_link_is_not_followed(place, tmp_path):
    target = tmp_path / "of the victim"
    target.mkdir(mode=0o700)
    place.symlink_to(target)
    assert make_private_folder(str(place)) != ""
    assert list(target.iterdir()) == []


def test_a_link_to_nowhere_makes_nothing(place, tmp_path):
    place.symlink_to(tmp_path / "nowhere")
    assert make_private_folder(str(place)) != ""
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("what", ["file", "fifo"])
def test_what_is_no_folder_is_not_used(place, what):
    place.touch() if what == "file" else os.mkfifo(place)
    assert "cannot be made (File exists)" in make_private_folder(str(place))


@pytest.mark.parametrize("path", ["/no/such/place/huggingface-0", "/proc/huggingface-0", "/dev/null/x"])
def test_where_none_can_be_made_there_is_a_reason(path):
    problem = make_private_folder(path)
    assert problem.startswith("cannot be made (") and "\n" not in problem


# In a launch


SLOW_HOME = """
import os
from hfaccel.launcher.prepare import prepare
module = sys.modules["hfaccel.launcher.prepare"]
facts = module.read_host()
changes = {"hub_cache_remote": True, "hub_cache_filesystem": "nfs4", "hub_cache_in_use": False}
software = facts.software._replace(local_cache=os.environ["PLACE"], **changes)
facts = facts._replace(software=software)
module.read_host = lambda: facts
"""
SHOW = "import os; print(os.environ.get('HF_HUB_CACHE'))"


def launched_with_slow_home(place, *arguments, **variables):
    return start([*patched(SLOW_HOME), *arguments], env={"PLACE": str(place), **variables})


def test_a_program_whose_home_is_slow_keeps_models_there(place):
    done = launched_with_slow_home(place, "-c", SHOW)
    assert done.stdout.decode() == f"{place}\n" and done.stderr == b""
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_where_the_folder_is_not_ours_models_stay_and_a_note_says_so(place):
    place.mkdir()
    place.chmod(0o777)
    done = launched_with_slow_home(place, "-c", SHOW)
    assert done.stdout == b"None\n" and done.returncode == 0
    text = done.stderr.decode()
    assert text.startswith("hfaccel-run: models stay where they are: ") and text.count("\n") == 1


def test_a_dry_run_makes_no_folder(place):
    done = launched_with_slow_home(place, "--dry-run", "--json", "-c", "pass")
    assert json.loads(done.stdout)["environment"]["HF_HUB_CACHE"] == str(place)
    assert not place.exists()


def test_the_users_own_place_is_kept(place):
    done = launched_with_slow_home(place, "-c", SHOW, HF_HUB_CACHE="/of/the/user")
    assert done.stdout == b"/of/the/user\n" and not place.exists()
