"""TensorFlow, CUDA, and the file system on which models are kept."""

from __future__ import annotations

import os
import sys

import pytest
from trees import FORMS, tree_maker

from hfaccel.host.software import read_software
from hfaccel.host.tree import Tree

CACHE = "/home/ada/.cache/huggingface/hub"


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


@pytest.fixture
def software_of(tree_of):
    """Of mounts, (place, file system) each in order, and the answers to probes."""

    def read(*mounts, files=None, **probes):
        lines = (f"22 1 0:24 / {place} rw shared:1 - {kind} source rw" for place, kind in mounts)
        answers = {"hub_cache": CACHE, "user": "1000", **probes}
        return read_software(
            tree_of(
                {"/proc/self/mountinfo": "\n".join(lines), **(files or {})}
                | {f"/probes/{name}": answer for name, answer in answers.items()}
            )
        )

    return read


# The cache of models


@pytest.mark.parametrize(
    ("mounts", "filesystem"),
    [
        ([("/", "ext4")], "ext4"),
        ([("/", "ext4"), ("/home", "nfs4")], "nfs4"),
        ([("/home", "nfs4"), ("/", "ext4")], "nfs4"),  # the longest place, in any order
        ([("/", "ext4"), ("/home", "xfs"), ("/home/ada", "zfs")], "zfs"),
        ([("/", "ext4"), (CACHE, "nfs")], "nfs"),
        ([("/", "ext4"), (f"{CACHE}/models--x", "nfs")], "ext4"),
        ([("/", "ext4"), ("/home", "nfs4"), ("/home", "xfs")], "xfs"),  # the later mount hides the earlier
        ([("/", "ext4"), ("/ho", "nfs"), ("/home/ad", "nfs"), ("/home/ada/", "xfs")], "xfs"),
        ([("/", "ext4"), ("/ho", "nfs"), ("/home/ad", "nfs")], "ext4"),  # no parts of a path
        ([("/mnt", "xfs")], ""),
        ([], ""),
    ],
)
def test_the_cache_is_on_the_file_system_that_is_mounted_nearest(software_of, mounts, filesystem):
    assert software_of(*mounts).hub_cache_filesystem == filesystem


NETWORK = (
    "nfs nfs4 cifs smb3 smbfs lustre beegfs gpfs ceph glusterfs afs 9p virtiofs orangefs fuse.sshfs "
    "fuse.glusterfs fuse.ceph-fuse fuse.s3fs fuse.gcsfuse fuse.juicefs fuse.blobfuse2 fuse.mount-s3 "
    "fuse.rclone"
)


@pytest.mark.parametrize("kind", NETWORK.split())
def test_a_network_file_system_is_remote(software_of, kind):
    software = software_of(("/", "ext4"), ("/home", kind), hub_cache_in_use="yes")
    assert (software.hub_cache_remote, software.hub_cache_in_use) == (True, True)
    assert software.local_cache == "/var/tmp/huggingface-1000"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "overlay", "tmpfs", "fuse.encfs", ""])
def test_others_are_local_and_nobody_looks_into_the_cache(software_of, kind):
    software = software_of(("/", "ext4"), ("/home", kind), hub_cache_in_use="yes")
    assert (software.hub_cache_remote, software.hub_cache_in_use, software.local_cache) == (False, False, "")


@pytest.mark.parametrize(
    ("mounts", "there_is_one"),
    [
        ([("/", "nfs"), ("/var", "xfs")], True),
        *(([("/", "nfs"), ("/var/tmp", kind)], True) for kind in ("ext4", "btrfs", "zfs", "f2fs")),
        ([("/", "overlay"), ("/home", "nfs")], True),
        ([("/", "nfs")], False),
        ([("/", "ext4"), ("/home", "nfs"), ("/var", "nfs")], False),
        ([("/", "ext4"), ("/home", "nfs"), ("/var/tmp", "tmpfs")], False),  # it is memory
        ([("/home", "nfs")], False),
    ],
)
def test_a_local_folder_is_offered_where_var_tmp_is_on_a_disk(software_of, mounts, there_is_one):
    assert software_of(*mounts).local_cache == ("/var/tmp/huggingface-1000" if there_is_one else "")


def test_a_captured_host_does_not_show_this_machines_cache(tree_of):
    assert read_software(tree_of({})) == (False, False, "", "", False, False, "")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
        (
            {"HF_HUB_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": "", "HOME": "/d"},
            "/d/.cache/huggingface/hub",
        ),
        ({"HF_HUB_CACHE": "/a/../b"}, "/b"),
    ],
)
def test_the_live_cache_is_where_huggingface_hub_looks(monkeypatch, variables, folder):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_software(Tree("/")).hub_cache == folder


def live_with_mounts(monkeypatch, *lines):
    live = Tree("/")
    monkeypatch.setattr(live, "lines", lambda _, keep: list(filter(keep, lines)))
    return live


@pytest.mark.parametrize(
    ("names", "in_use"), [([], "no"), (["version.txt", "datasets--x"], "no"), (["models--a--b"], "yes")]
)
def test_a_remote_cache_is_in_use_when_there_are_models_in_it(monkeypatch, tmp_path, names, in_use):
    for name in names:
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    live = live_with_mounts(monkeypatch, "22 1 0:24 / / rw - nfs4 server:/ rw")
    assert read_software(live).hub_cache_in_use is (in_use == "yes")
    assert live.seen["/probes/hub_cache_in_use"] == in_use
    assert "/probes/user" not in live.seen  # /var/tmp is remote too


def test_a_remote_cache_that_cannot_be_listed_is_not_in_use(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "missing"))
    mounts = ("22 1 0:24 / / rw - nfs4 server:/ rw", "23 1 0:25 / /var rw - ext4 /dev/sda rw")
    live = live_with_mounts(monkeypatch, *mounts)
    software = read_software(live)
    assert software.hub_cache_remote
    assert not software.hub_cache_in_use
    assert software.local_cache == f"/var/tmp/huggingface-{os.geteuid()}"


# Other software


@pytest.mark.parametrize(("text", "cuda"), [("NVRM version: NVIDIA", True), ("", True), (None, False)])
def test_the_driver_in_the_kernel_means_cuda(software_of, text, cuda):
    assert software_of(files={"/proc/driver/nvidia/version": text}).cuda is cuda


@pytest.mark.parametrize(
    ("answer", "installed"), [("yes", True), ("no", False), ("", False), ("noise", False)]
)
def test_a_captured_host_says_whether_tensorflow_is_installed(software_of, answer, installed):
    assert software_of(tensorflow=answer).tensorflow is installed


def test_the_live_tensorflow_is_a_package_on_the_path_that_is_not_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(tmp_path / "none")])
    (tmp_path / "tensorflow").mkdir()
    assert not read_software(Tree("/")).tensorflow
    (tmp_path / "tensorflow/__init__.py").write_text("raise SystemExit")
    assert read_software(Tree("/")).tensorflow
