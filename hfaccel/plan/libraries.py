"""Rules for the libraries around a model: tokenizers, huggingface_hub, TensorFlow, CUDA. Pure."""

from __future__ import annotations

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts
from hfaccel.plan.choice import Goal, Values
from hfaccel.plan.compute import Decision, Variables, threads, under_quota


def tokenizer_threads(facts: HostFacts, goal: Goal) -> Decision:
    count, _ = threads(facts, goal)
    if count == 1:
        return 1, "there is one compute thread, which a second thread for tokens would interrupt"
    if goal.slot is not None or under_quota(facts, goal):
        return count, "tokenizers counts the CPUs of the host, not those of this process"
    return None, "tokenizers uses the CPUs of the affinity mask"


def export_tokenizer_threads(value: int, values: Values) -> Variables:
    parallel = {} if value > 1 else {"TOKENIZERS_PARALLELISM": "false"}
    return {"RAYON_NUM_THREADS": str(value), **parallel}


def hub_cache(facts: HostFacts, goal: Goal) -> Decision:
    software = facts.software
    if not software.hub_cache_remote:
        return None, "models are kept on a local file system"
    place = f"models are kept on a network file system ({software.hub_cache_filesystem})"
    if software.hub_cache_in_use:
        return None, f"{place}, but some are there already and would be downloaded again"
    if goal.environment.get("HF_HUB_OFFLINE") or not software.local_cache:
        return None, f"{place}, and there is no local place for them"
    return software.local_cache, f"{place}: every process would read them over the network"


def parse_hub_cache(value: object, facts: HostFacts) -> str | None:
    if value == "off":
        return None
    if isinstance(value, str) and value.startswith("/") and value.isprintable():
        return value
    raise UsageError(f"the hub cache must be off or an absolute path, but got {value!r}")


def tensorflow_threads(facts: HostFacts, goal: Goal) -> Decision:
    if not facts.software.tensorflow:
        return None, "TensorFlow is not installed"
    count, reason = threads(facts, goal)
    return count, f"TensorFlow takes neither the CPU quota nor hyper-threads into account: {reason}"


def export_tensorflow_threads(value: int, values: Values) -> Variables:
    return {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_NUM_INTRAOP_THREADS": str(value), "TF_NUM_INTEROP_THREADS": "1"}


def cuda_allocator(facts: HostFacts, goal: Goal) -> Decision:
    if not facts.software.cuda:
        return None, "no CUDA device"
    return "expandable_segments:True", "otherwise changing lengths fragment torch's CUDA memory"


def parse_cuda_allocator(value: object, facts: HostFacts) -> str | None:
    if value == "off":
        return None
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise UsageError(f"the settings of torch's CUDA allocator must be text, but got {value!r}")
