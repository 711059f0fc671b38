"""hfaccel.auto and HFACCEL_AUTO=1: an unchanged program gets optimized models and the same results."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import make_bert, needs_kernels

from hfaccel.apply.hooks import BINDING
from hfaccel.host import read_host
from hfaccel.plan import KNOBS, cpu_budget

VARIABLES = {variable for knob in KNOBS for variable in knob.variables} | set(BINDING)
CLEAN = {name: value for name, value in os.environ.items() if name not in VARIABLES | {"HFACCEL_AUTO"}}


def start(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**CLEAN, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process):
    """The last line of its output, as JSON, and what came on standard error."""
    output, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return json.loads(output.splitlines()[-1]), said


# Before the program imports anything

LOADED = """
import json, sys
heavy = ("torch", "transformers", "numpy", "hfaccel")
print(json.dumps(sorted(name for name in heavy if name in sys.modules)))
"""


@pytest.mark.parametrize("value", [None, "", "0", "true", "11"])
def test_without_the_variable_nothing_is_imported_at_all(value):
    environment = {} if value is None else {"HFACCEL_AUTO": value}
    assert answer(start(LOADED, **environment)) == ([], "")


def test_with_the_variable_only_hfaccel_is_imported():
    assert answer(start(LOADED, HFACCEL_AUTO="1")) == (["hfaccel"], "")


def test_importing_the_module_imports_nothing_else():
    assert answer(start(f"import hfaccel.auto\n{LOADED}")) == (["hfaccel"], "")


def test_a_program_that_fails_fails_as_it_did():
    process = start("import no_such_module", HFACCEL_AUTO="1")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")
    assert "hfaccel" not in said


# One program, as it is and with HFACCEL_AUTO=1. It knows nothing of hfaccel.

PROGRAM = """
import importlib.util, json, sys
minilm, bert, composite, vision, convolutions = sys.argv[1:]
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, BertModel, EncoderDecoderModel, ResNetModel
from transformers import VisionEncoderDecoderModel, pipeline

results = {}
tokens = AutoTokenizer.from_pretrained(minilm)
texts = ["a cat", "a longer sentence about something else, which needs more tokens"]
batch = tokens(texts, padding=True, return_tensors="pt")
ids = torch.arange(10, 26).reshape(2, 8)

def keep(name, model, values):
    record = getattr(model, "_hfaccel", None)
    parts = {part: module._hfaccel.backend for part, module in model.named_modules()
             if part and hasattr(module, "_hfaccel")}
    results[name] = {
        "backend": record and record.backend,
        "parts": parts,
        "training": model.training,
        "values": values.detach().double().flatten().tolist(),
    }

def embed(model):
    with torch.inference_mode():
        return model(**batch)[0].mean(1)

model = AutoModel.from_pretrained(minilm)
keep("AutoModel", model, embed(model))
model = BertModel.from_pretrained(minilm)
keep("the class itself", model, embed(model))
model = BertModel.from_pretrained(minilm)
keep("a second time", model, embed(model))
loaded = BertModel.from_pretrained(minilm, output_loading_info=True)
keep("with loading info", loaded[0], embed(loaded[0]))
results["loading info"] = [len(loaded), sorted(loaded[1])]

made = pipeline("feature-extraction", model=minilm)
keep("pipeline by path", made.model, torch.tensor(made(texts[1])[0]))
given = BertModel(model.config).eval()
given.load_state_dict(loaded[0].state_dict())
made = pipeline("feature-extraction", model=given, tokenizer=tokens)
keep("pipeline by object", made.model, torch.tensor(made(texts[1])[0]))
results["same object"] = made.model is given

def decode(model, **given):
    with torch.inference_mode():
        return model(decoder_input_ids=ids, **given).logits

torch.manual_seed(0)
model = EncoderDecoderModel.from_encoder_decoder_pretrained(bert, bert).eval()
keep("made of two", model, decode(model, input_ids=ids))
model = EncoderDecoderModel.from_pretrained(composite)
keep("encoder and decoder", model, decode(model, input_ids=ids))
model = VisionEncoderDecoderModel.from_pretrained(vision)
pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
keep("vision and decoder", model, decode(model, pixel_values=pixels))

with torch.inference_mode():
    model = ResNetModel.from_pretrained(convolutions)
    keep("convolutions", model, model(pixels).pooler_output)
model = BertModel.from_pretrained(bert).train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    loss = model(input_ids=ids)[0].square().mean()
    loss.backward()
    optimizer.step()
keep("trained", model, loss)

if importlib.util.find_spec("sentence_transformers"):
    from sentence_transformers import SentenceTransformer
    sentences = SentenceTransformer(minilm)
    keep("sentence-transformers", sentences[0].auto_model, torch.tensor(sentences.encode(texts)))

    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
    torch.manual_seed(0)  # MiniLM has neither head
    pairs = CrossEncoder(minilm, num_labels=1)
    keep("pairs", pairs.model, torch.tensor(pairs.predict([texts, texts[::-1], texts[:1] * 2])))
    sparse = SparseEncoder(modules=[MLMTransformer(minilm), SpladePooling()])
    keep("sparse vectors", sparse[0].auto_model, sparse.encode(texts).to_dense())
    expansion = {"strategy": "fixed", "attend": False, "length": 32}
    tokens = MultiVectorEncoder(modules=[Transformer(minilm, query_expansion=expansion), MultiVectorMask()])
    vectors = [*tokens.encode_query(texts), *tokens.encode_document(texts)]
    keep("vectors of tokens", tokens[0].auto_model, torch.cat([torch.as_tensor(each) for each in vectors]))
results["wrapped"] = [hasattr(BertModel.from_pretrained, "__wrapped__"), hasattr(pipeline, "__wrapped__")]
print(json.dumps(results))
"""
ON_MINILM = ["AutoModel", "the class itself", "a second time", "with loading info"]
PIPELINES = ["pipeline by path", "pipeline by object"]
COMPOSITES = ["encoder and decoder", "vision and decoder"]
OTHERS = ["made of two", "convolutions", "trained"]
HAS_SENTENCES = importlib.util.find_spec("sentence_transformers") is not None
SENTENCES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not HAS_SENTENCES, reason="sentence-transformers is not installed")
    )
    for name in ("sentence-transformers", "pairs", "sparse vectors", "vectors of tokens")
]


def make_models(folder):
    """Small models with random weights: BERT, two composites, one of convolutions."""
    from transformers import (
        EncoderDecoderModel,
        ResNetConfig,
        ResNetModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )

    sizes = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    quiet = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def decoder():
        from transformers import BertConfig, BertLMHeadModel

        return BertLMHeadModel(
            BertConfig(vocab_size=1000, is_decoder=True, add_cross_attention=True, **sizes, **quiet)
        )

    models = {
        "bert": make_bert(**quiet),
        "composite": EncoderDecoderModel(encoder=make_bert(**quiet), decoder=decoder()),
        "vision": VisionEncoderDecoderModel(
            encoder=ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes, **quiet)), decoder=decoder()
        ),
        "convolutions": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return [str(folder / name) for name in models]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def programs(minilm_path, models):
    """What the program computes: as it is, and optimized; with what each said on standard error."""
    stock = answer(start(PROGRAM, minilm_path, *models))
    auto = answer(start(PROGRAM, minilm_path, *models, HFACCEL_AUTO="1"))
    return stock, auto


@pytest.mark.parametrize("name", [*ON_MINILM, *PIPELINES, *COMPOSITES, *OTHERS, *SENTENCES])
def test_the_results_are_the_same(programs, name):
    stock, auto = (torch.tensor(results[name]["values"]) for results, _ in programs)
    assert stock.numel() and stock.isfinite().all()
    torch.testing.assert_close(auto, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*ON_MINILM, *PIPELINES, *COMPOSITES, *SENTENCES, "convolutions"])
@needs_kernels
def test_the_model_is_optimized(programs, name):
    assert programs[1][0][name]["backend"] == "torch"


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_model_of_models_is_optimized_as_a_whole(programs, name):
    assert programs[1][0][name]["parts"] == {}


@needs_kernels
def test_models_that_are_put_together_afterwards_are_optimized_each(programs):
    assert programs[1][0]["made of two"]["parts"] == {"encoder": "torch", "decoder": "torch"}


def test_loading_info_comes_as_it_did(programs):
    (stock, _), (auto, _) = programs
    assert auto["loading info"] == stock["loading info"]
    assert auto["loading info"][0] == 2


def test_a_pipeline_has_the_model_that_it_was_given(programs):
    assert all(results["same object"] for results, _ in programs)


def test_training_mode_is_as_it_was(programs):
    stock, auto = (results for results, _ in programs)
    trained = [name for name, row in stock.items() if isinstance(row, dict) and row["training"]]
    assert trained == ["trained"]
    assert trained == [name for name, row in auto.items() if isinstance(row, dict) and row["training"]]


def test_without_the_variable_nothing_is_wrapped(programs):
    stock = programs[0][0]
    assert stock["wrapped"] == [False, False]
    assert {row["backend"] for row in stock.values() if isinstance(row, dict)} == {None}


def test_nothing_is_said(programs):
    """Both say what transformers says, and hfaccel says nothing."""
    assert "hfaccel" not in programs[1][1]


# A program that imports it late, or of which something goes wrong

LATE = """
import inspect, json, sys, threading
(bert,) = sys.argv[1:]
import torch
import transformers.pipelines
from transformers import BertModel, BertTokenizerFast
before = [inspect.signature(BertModel.from_pretrained), BertModel.from_pretrained.__doc__]
import hfaccel.auto
once = BertModel.from_pretrained.__func__
import hfaccel.auto
results = {"wrapped once": BertModel.from_pretrained.__func__ is once}
after = [inspect.signature(BertModel.from_pretrained), BertModel.from_pretrained.__doc__]
results["looks the same"] = before == after

def backend(model):
    record = getattr(model, "_hfaccel", None)
    return record and record.backend

tokens = BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5})

results["late"] = backend(BertModel.from_pretrained(bert))

class Mine(BertModel):
    @classmethod
    def from_pretrained(cls, *given, **keywords):
        return super().from_pretrained(*given, **keywords)

mine = Mine.from_pretrained(bert)
results["a class of the program"] = [backend(mine), isinstance(mine, Mine)]

loaded = []
threads = [threading.Thread(target=lambda: loaded.append(BertModel.from_pretrained(bert))) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
results["threads"] = [backend(model) for model in loaded]

from transformers import pipeline
config = BertModel.from_pretrained(bert).config
made = pipeline("feature-extraction", model=BertModel(config).eval(), tokenizer=tokens)
results["pipeline by object"] = backend(made.model)
training = BertModel(config).train()
made = pipeline("feature-extraction", model=training, tokenizer=tokens)
results["training"] = [made.model is training, len(made("a")[0]) > 0]

try:
    BertModel.from_pretrained("/no/such/model")
except Exception as error:
    results["error"] = type(error).__name__
results["after an error"] = backend(BertModel.from_pretrained(bert))  # the depth of loading is right again

import hfaccel.optimization
def broken(*given, **keywords):
    raise RuntimeError("out of ideas")
hfaccel.optimization.optimize = broken
model = BertModel.from_pretrained(bert)
with torch.inference_mode():
    results["broken"] = [backend(model), model(input_ids=torch.ones(1, 3, dtype=torch.long))[0].shape[1]]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def late(models):
    return answer(start(LATE, models[0]))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("wrapped once", True),
        ("looks the same", True),
        ("late", "torch"),
        ("a class of the program", ["torch", True]),
        ("threads", ["torch", "torch"]),
        ("pipeline by object", "torch"),
        ("training", [True, True]),
        ("error", "OSError"),
        ("after an error", "torch"),
        ("broken", [None, 3]),
    ],
)
@needs_kernels
def test_imported_after_transformers(late, what, expected):
    assert late[0][what] == expected


def test_what_goes_wrong_is_said_in_a_line(late):
    said = [line for line in late[1].splitlines() if "hfaccel" in line]
    assert said == ["hfaccel: BertModel stays as it is: out of ideas"]


def test_a_process_that_cannot_be_set_up_imports_torch_all_the_same(tmp_path):
    """The program did not ask for hfaccel: it must run as without it."""
    (tmp_path / "torch.py").write_text("x = 1")
    code = """
import json
import hfaccel.auto, hfaccel.configuration
from hfaccel.errors import UsageError
def broken(**overrides):
    raise UsageError("threads must be many")
hfaccel.configuration.configure = broken
import torch
print(json.dumps(torch.x))
"""
    imported, said = answer(start(code, PYTHONPATH=str(tmp_path)))
    assert imported == 1
    assert "threads must be many" in said and "Traceback" not in said


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one CPU")
def test_threads_are_counted_before_openmp_binds_the_main_thread():
    """With OMP_PROC_BIND the import of torch leaves the main thread one CPU; the others are still there."""
    code = """
import json, os
import torch
print(json.dumps([torch.get_num_threads(), sorted(os.sched_getaffinity(0))]))
"""
    budget = cpu_budget(read_host())
    (threads, mask), _ = answer(start(code, HFACCEL_AUTO="1", OMP_PROC_BIND="true"))
    assert threads == budget.threads
    assert set(mask) >= set(budget.cores)
