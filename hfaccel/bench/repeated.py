"""Studies of this repository that a user can repeat by name: their arguments for `hfaccel bench`.

They measure what the scripts in benchmarks/ measure, without the bars and the engines of other packages.
"""

from __future__ import annotations

REPEATED: dict[str, tuple[str, ...]] = {
    "speed": (
        *("random:bert-base", "--batch-sizes", "1,8", "--lengths", "16,128", "--backends", "torch"),
        *("--precisions", "fp32,bf16,int8"),
    ),
    "backends": (
        *("random:bert-base", "--batch-sizes", "1,8", "--lengths", "16,128", "--precisions", "fp32,int8"),
        *("--backends", "eager,torch,onnxruntime,openvino,inductor"),
    ),
    "texts": ("random:minilm", "--texts", "docstrings", "--token-budgets", "none,4096"),
    "allocators": (
        *("random:bert-base", "--batch-sizes", "32", "--lengths", "128", "--backends", "eager"),
        *("--precisions", "fp32,bf16", "--allocators", "default,glibc,mimalloc,jemalloc,tcmalloc"),
        *("--huge-pages", "off,auto"),
    ),
    "openmp": (
        *("random:bert-base", "--batch-sizes", "1", "--lengths", "16,128", "--precisions", "fp32"),
        *("--omp-runtimes", "default,intel"),
    ),
    "instances": (
        *("random:bert-base", "--batch-sizes", "8", "--lengths", "128", "--precisions", "fp32,bf16"),
        *("--instances", "1,2,4,8"),
    ),
    "scaling": (
        *("random:bert-base", "--batch-sizes", "1,8", "--lengths", "128", "--precisions", "fp32,bf16,int8"),
        *("--threads", "1,2,4,8,16,32"),
    ),
    "generation": ("random:qwen2-0.5b", "--lengths", "64,512", "--new-tokens", "64"),
}
