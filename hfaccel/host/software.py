"""The other software that the plan depends on: TensorFlow, CUDA, and where huggingface_hub keeps models."""

from __future__ import annotations

import os
import sys

from hfaccel.host.facts import Software
from hfaccel.host.limits import mounts
from hfaccel.host.tree import Tree

NETWORK_FILESYSTEMS = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "beegfs", "gpfs", "ceph", "glusterfs", "afs", "9p"),
    *("virtiofs", "orangefs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.s3fs", "fuse.gcsfuse"),
    *("fuse.juicefs", "fuse.blobfuse2", "fuse.mount-s3", "fuse.rclone"),
)
LOCAL_FILESYSTEMS = ("ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay")  # on a disk; tmpfs is memory
SCRATCH = "/var/tmp"  # survives a reboot, unlike /tmp, and is not kept in memory


def read_software(tree: Tree) -> Software:
    cache = tree.probe("hub_cache", _hub_cache)
    filesystem = _filesystem(tree, cache)
    remote = filesystem in NETWORK_FILESYSTEMS
    local = remote and _filesystem(tree, SCRATCH) in LOCAL_FILESYSTEMS
    return Software(
        tensorflow=tree.probe("tensorflow", _has_tensorflow) == "yes",
        cuda=tree.text("/proc/driver/nvidia/version") is not None,
        hub_cache=cache,
        hub_cache_filesystem=filesystem,
        hub_cache_remote=remote,
        hub_cache_in_use=remote and tree.probe("hub_cache_in_use", lambda: _in_use(cache)) == "yes",
        local_cache=f"{SCRATCH}/huggingface-{tree.probe('user', lambda: str(os.geteuid()))}" if local else "",
    )


def _hub_cache() -> str:
    """Where huggingface_hub looks, by its own variables."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    default = os.environ.get("HF_HOME") or f"{home}/huggingface"
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{default}/hub"
    return os.path.realpath(os.path.expanduser(os.path.expandvars(own)))  # noqa: PTH111


def _has_tensorflow() -> str:
    places = (f"{entry}/tensorflow/__init__.py" for entry in sys.path if entry)
    return "yes" if any(map(os.path.isfile, places)) else "no"


def _in_use(folder: str) -> str:
    try:
        return "yes" if any(name.startswith("models--") for name in os.listdir(folder)) else "no"  # noqa: PTH208
    except OSError:
        return "no"


def _filesystem(tree: Tree, path: str) -> str:
    """The type of the file system that holds `path`; "" where unknown."""
    holding = mounts(tree, lambda mount: f"{path}/".startswith(f"{mount.place.rstrip('/')}/"))
    # Of two mounts at one place, the later hides the earlier.
    return max(reversed(holding), key=lambda mount: len(mount.place)).filesystem if holding else ""
