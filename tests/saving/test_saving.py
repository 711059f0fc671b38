"""save and load: equal models without packing; what is damaged or made for elsewhere is never used."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_bert, states
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hfaccel
from hfaccel.engine import kernels_problem, plan_of
from hfaccel.errors import HfaccelError, ModelError, UsageError
from hfaccel.memory import shared
from hfaccel.saving import files, parts

PRECISIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
# A pickle carries dense values, which are packed, and in int8 rounded, again.
REPACKED = {"float32": 1e-6, "bfloat16": 1e-6, "int8": 1e-6}
pytestmark = [
    pytest.mark.skipif(bool(kernels_problem()), reason="no kernels here: nothing is packed"),
    pytest.mark.filterwarnings("ignore:what is saved cannot be made again:RuntimeWarning"),
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_bert().save_pretrained(folder)
    return folder


def loaded(checkpoint, **arguments):
    return hfaccel.optimize(transformers.BertModel.from_pretrained(checkpoint).eval(), **arguments)


@pytest.fixture(scope="session")
def saved_once(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hfaccel.save(loaded(checkpoint), folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    return Path(shutil.copytree(saved_once, tmp_path / "saved"))


def weights(folder):
    (path,) = folder.glob(files.WEIGHTS)
    return path


def flip(path, place, change=1):
    data = bytearray(path.read_bytes())
    data[place] ^= change
    path.write_bytes(data)


def made_again(folder):
    """Load, and the reason that is given for making the model again."""
    with pytest.warns(RuntimeWarning, match="was made again from") as caught:
        model = hfaccel.load(folder)
    return model, str(caught[0].message)


# Equal


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loaded_model_is_equal_in_everything(precision, checkpoint, tmp_path, batch):
    fast = loaded(checkpoint, **PRECISIONS[precision])
    hfaccel.save(fast, tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = hfaccel.load(tmp_path / "x")
    assert torch.equal(states(got, batch), states(fast, batch))
    assert type(got) is type(fast) and not got.training
    assert [type(module) for module in got.modules()] == [type(module) for module in fast.modules()]
    assert got.config.to_dict() == fast.config.to_dict()
    assert list(got.state_dict()) == list(fast.state_dict())
    for name, value in fast.state_dict().items():
        assert torch.equal(got.state_dict()[name], value)
    for name, tensor in parts.names(fast).items():  # position_ids too, which no checkpoint has
        assert parts.names(got)[name].requires_grad == tensor.requires_grad
    with torch.inference_mode():
        assert len(got(**batch, output_hidden_states=True).hidden_states) == 3
    assert not hfaccel.report(got).stock_calls


def test_the_report_says_that_it_was_loaded(saved):
    lines = hfaccel.report(hfaccel.load(saved)).outcomes
    assert "as they are" in lines[-1].reason and lines[-1].applied
    assert any(line.subject == "BERT layer" and line.count == 2 for line in lines)
    assert not any(line.subject == "huge pages" for line in lines)  # of the process that saved it


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loaded_model_is_a_model_like_any_other(precision, checkpoint, tmp_path, batch):
    hfaccel.save(loaded(checkpoint, **PRECISIONS[precision]), tmp_path)
    got = hfaccel.load(tmp_path)
    expected = states(got, batch)
    for other in (copy.deepcopy(got), pickle.loads(pickle.dumps(got))):
        assert torch.allclose(states(other, batch), expected, atol=REPACKED[precision])
    hfaccel.memory.share(got)
    assert shared(got).outcome.applied and torch.equal(states(got, batch), expected)
    with torch.no_grad():
        got.encoder.layer[0].output.dense.weight.mul_(2)
    assert not torch.equal(states(got, batch), expected)
    assert torch.equal(states(hfaccel.load(tmp_path), batch), expected)  # the files did not change
    hfaccel.restore(got)
    assert type(got.encoder.layer[0].output.dense) is nn.Linear


def test_ties_and_heads_and_generation_settings_come_back(tmp_path, batch):
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=512,
    )
    fast = hfaccel.optimize(transformers.BertForMaskedLM(config).eval(), unpad=False)
    hfaccel.save(fast, tmp_path)
    got = hfaccel.load(tmp_path)
    assert got.cls.predictions.decoder.weight is got.bert.embeddings.word_embeddings.weight
    with torch.inference_mode():
        assert torch.equal(got(**batch).logits, fast(**batch).logits)
    assert plan_of(got).steps == plan_of(fast).steps and not any(of_layers(got, "unpad"))


@pytest.mark.parametrize("calls", [False, True], ids=["new", "after a call"])
@pytest.mark.parametrize("kind", ["BigBirdForMaskedLM", "BigBirdPegasusModel"])
def test_models_that_switch_their_attention_in_a_call_come_back(kind, calls, tmp_path):
    """BigBird sees a short text whole, and stays so."""
    cls = getattr(transformers, kind)
    sizes = dict(vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(intermediate_size=128, d_model=64, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=128)
    sizes |= dict(decoder_ffn_dim=128, encoder_attention_heads=2, decoder_attention_heads=2)
    fast = hfaccel.optimize(cls(cls.config_class(**sizes)).eval())
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        if calls:
            fast(ids)
        hfaccel.save(fast, tmp_path)
        assert torch.equal(hfaccel.load(tmp_path)(ids)[0], fast(ids)[0])


def test_a_model_with_a_part_that_knows_one_attention_only_comes_back(tmp_path):
    """A backbone of convolutions has no sdpa, and is not asked for it by stock either."""
    backbone = dict(model_type="resnet", embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1] * 4)
    config = transformers.DetrConfig(
        backbone_config={**backbone, "out_features": ["stage4"]},
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=4,
    )
    torch.manual_seed(0)
    fast = hfaccel.optimize(transformers.DetrModel(config).eval())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = fast(image)[0]
        hfaccel.save(fast, tmp_path)
        torch.testing.assert_close(hfaccel.load(tmp_path)(image)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["DistilBert", "ModernBert", "ViT"])
def test_other_families_come_back(kind, tmp_path):
    sizes = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    if kind == "DistilBert":
        sizes = dict(dim=128, n_layers=2, n_heads=2, hidden_dim=256)
    if kind == "ModernBert":
        sizes |= dict(vocab_size=1000, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        sizes |= dict(cls_token_id=1, sep_token_id=2)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    fast = hfaccel.optimize(model)
    hfaccel.save(fast, tmp_path)
    got = hfaccel.load(tmp_path)
    given = torch.randn(1, 3, 224, 224) if kind == "ViT" else torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(got(given)[0], fast(given)[0])
    assert plan_of(got).steps == plan_of(fast).steps and of_layers(got, "family")


OTHER_PROCESS = """
import json, sys, torch, hfaccel
from pathlib import Path
model = hfaccel.load(sys.argv[1])
with torch.inference_mode():
    result = model(torch.arange(1, 9)[None])[0]
maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "weights-" in line]
print(json.dumps([result.double().abs().sum().item(), len(maps), maps[0].split()[1]]))
"""


def test_a_new_process_maps_the_file_and_computes_the_same(saved):
    with torch.inference_mode():
        expected = hfaccel.load(saved)(torch.arange(1, 9)[None])[0].double().abs().sum().item()
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(saved)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result, maps, mode = json.loads(done.stdout.splitlines()[-1])
    assert result == expected
    assert maps >= 1 and mode == "rw-p"  # private: what is changed in place is a copy of the page


# Damaged, or made for elsewhere


@pytest.mark.parametrize("place", [0, 4096, 123_457, -1])
def test_a_flipped_byte_in_the_weights_is_found(place, saved, batch):
    expected = states(hfaccel.load(saved), batch)
    flip(weights(saved), place)
    model, reason = made_again(saved)
    assert "is damaged (its checksum is another)" in reason
    assert torch.equal(states(model, batch), expected)
    assert reason in hfaccel.report(model).outcomes[-1].reason
    assert torch.equal(states(hfaccel.load(saved), batch), expected)  # repaired, without a warning


@pytest.mark.parametrize("size", [0, 4096, -4096])
def test_a_truncated_file_is_found(size, saved, batch):
    path = weights(saved)
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    model, reason = made_again(saved)
    assert "bytes, but has" in reason
    states(model, batch)


def test_missing_weights_are_found(saved):
    weights(saved).unlink()
    assert "cannot be mapped (No such file or directory)" in made_again(saved)[1]


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_byte_of_the_manifest_is_found(saved_once, data):
    document = (saved_once / files.MANIFEST).read_bytes()
    place = data.draw(st.integers(0, len(document) - 1))
    damaged = bytearray(document)
    damaged[place] ^= data.draw(st.integers(1, 255))
    assert files.decode(document)
    with pytest.raises(files.Unusable, match="it is damaged"):
        files.decode(bytes(damaged))


@given(st.binary(max_size=100))
def test_no_document_is_taken_for_one(data):
    with pytest.raises(files.Unusable, match="it is damaged"):
        files.decode(data)


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_manifest_is_made_again(how, saved, batch):
    expected = states(hfaccel.load(saved), batch)
    path = saved / files.MANIFEST
    if how == "flipped":
        flip(path, 2000)
    elif how == "truncated":
        os.truncate(path, 2000)
    else:
        path.unlink()
    model, reason = made_again(saved)
    assert "manifest.json" in reason
    assert torch.equal(states(model, batch), expected)
    hfaccel.load(saved)


def rewrite(folder, **changes):
    """A manifest that is valid in itself, and says something else."""
    content = files.read_document(folder / files.MANIFEST)
    files.write_document(folder / files.MANIFEST, {**content, **changes})


@pytest.mark.parametrize("key", ["hfaccel", "torch", "transformers", "machine", "format"])
def test_other_versions_and_machines_are_not_used(key, saved):
    rewrite(saved, made_for={**parts.made_for(), key: "another"})
    assert f"it was made for {key} another (here: " in made_again(saved)[1]
    hfaccel.load(saved)


def of_layers(model, setting):
    return [step.settings[setting] for step in plan_of(model).steps if step.replacement == "layer"]


def plan(path, replacement, **settings):
    return {"steps": [{"path": path, "replacement": replacement, "settings": settings}], "notes": []}


FUSED = {"unpad": True, "slower": []}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class": "system"}, "transformers has no model of the class 'system'"),
        ({"class": "AutoConfig"}, "no model of the class 'AutoConfig'"),
        ({"attention": "kernels-community/flash-attn"}, "its attention is 'kernels-community/flash-attn'"),
        ({"tensors": []}, "there are no weights for"),
        ({"plan": plan("encoder.layer.7", "layer", family="BERT", **FUSED)}, "cannot be fused"),
        ({"plan": plan("encoder.layer.0", "layer", family="Q", **FUSED)}, "cannot be fused"),
        ({"plan": plan("decoder", "stack", layers="layer")}, "cannot be fused"),
        ({"plan": plan("encoder", "linear", kind="float32")}, "cannot be fused"),
        ({"plan": plan("encoder", "system")}, "cannot be fused"),
        ({"plan": {"layers": {}}}, "cannot be fused"),
    ],
)
def test_a_manifest_of_something_else_is_not_used(changes, reason, saved):
    rewrite(saved, **changes)
    assert reason in made_again(saved)[1]


@pytest.mark.parametrize(
    "changes", [{"offset": 1 << 40}, {"offset": -64}, {"offset": (6 << 20) - 64}, {"shape": [4096, 4096]}]
)
def test_no_tensor_reaches_beyond_the_file(changes, saved):
    tensors = files.read_document(saved / files.MANIFEST)["tensors"]
    number = next(number for number, tensor in enumerate(tensors) if tensor["packed"])
    tensors[number].update(changes)
    rewrite(saved, tensors=tensors)
    assert "does not fit" in made_again(saved)[1]


# Making it again


def test_without_a_checkpoint_the_error_says_so(bert, tmp_path):
    with pytest.warns(RuntimeWarning, match="the model was not loaded from a checkpoint"):
        hfaccel.save(hfaccel.optimize(bert), tmp_path)
    hfaccel.load(tmp_path)
    flip(weights(tmp_path), 77)
    with pytest.raises(
        HfaccelError, match=r"cannot be used: .* damaged .*; nor made again: source.json"
    ) as e:
        hfaccel.load(tmp_path)
    assert "optimize the original, and save it here again" in str(e.value)


def test_a_model_that_was_trained_since_is_not_taken_for_its_checkpoint(checkpoint, tmp_path):
    fast = loaded(checkpoint)
    with torch.no_grad():
        fast.pooler.dense.weight.mul_(1.01)
    with pytest.warns(RuntimeWarning, match="other values than the model in pooler.dense.weight"):
        hfaccel.save(fast, tmp_path)
    assert torch.equal(hfaccel.load(tmp_path).pooler.dense.weight, fast.pooler.dense.weight)


def test_a_checkpoint_that_changed_since_is_not_used(tmp_path):
    make_bert().save_pretrained(tmp_path / "checkpoint")
    hfaccel.save(loaded(tmp_path / "checkpoint"), tmp_path / "saved")
    other = make_bert()
    nn.init.ones_(other.pooler.dense.bias)
    other.save_pretrained(tmp_path / "checkpoint")
    flip(weights(tmp_path / "saved"), 77)
    with pytest.raises(HfaccelError, match="has other values than when the model was saved"):
        hfaccel.load(tmp_path / "saved")
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(HfaccelError, match="cannot be loaded"):
        hfaccel.load(tmp_path / "saved")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_made_again_with_the_same_arguments(precision, checkpoint, tmp_path, batch):
    fast = loaded(checkpoint, unpad=False, **PRECISIONS[precision])
    hfaccel.save(fast, tmp_path)
    flip(weights(tmp_path), 77)
    model, _ = made_again(tmp_path)
    assert torch.equal(states(model, batch), states(fast, batch))
    assert not any(of_layers(model, "unpad"))


def test_where_it_cannot_be_repaired_it_is_made_again_all_the_same(saved, monkeypatch, batch):
    def full(*_):
        raise OSError(28, "No space left on device")

    flip(weights(saved), 77)
    monkeypatch.setattr(files, "write_weights", full)
    model, reason = made_again(saved)
    assert "It is not saved (No space left on device)" in reason
    states(model, batch)
    assert made_again(saved)  # and the next time again


def test_processes_that_find_damage_together_repair_it_once(saved):
    flip(weights(saved), 77)
    command = [sys.executable, "-W", "always", "-c", OTHER_PROCESS, str(saved)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    ended = [process.communicate(timeout=280) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    results = {json.loads(out.splitlines()[-1])[0] for out, _ in ended}
    assert len(results) == 1
    assert sum(b"was made again from" in err for _, err in ended) == 1


# Saving


def test_a_model_saved_over_another_replaces_it_and_leaves_nothing(saved, bert, batch):
    old = hfaccel.load(saved)
    expected = states(old, batch)
    with torch.no_grad():
        bert.pooler.dense.weight.mul_(3)
        bert.encoder.layer[1].output.dense.weight.mul_(3)
    fast = hfaccel.optimize(bert)
    (saved / f"{files.TEMPORARY}weights").write_bytes(b"of a process that was killed")
    hfaccel.save(fast, saved)
    assert torch.equal(states(hfaccel.load(saved), batch), states(fast, batch))
    assert torch.equal(states(old, batch), expected)  # its file is still there for who has it mapped
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", weights(saved).name]


@pytest.mark.parametrize("step", ["write_weights", "write_document"])
def test_a_save_that_fails_leaves_the_old_model(step, saved, bert, batch, monkeypatch):
    expected = states(hfaccel.load(saved), batch)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        bert.encoder.layer[1].output.dense.weight.mul_(3)
    with monkeypatch.context() as patch:
        patch.setattr(files, step, fail)
        with pytest.raises(OSError, match="No space left"):
            hfaccel.save(hfaccel.optimize(bert), saved)
    assert torch.equal(states(hfaccel.load(saved), batch), expected)


def test_a_model_in_training_is_not_saved(checkpoint, tmp_path, batch):
    fast = loaded(checkpoint)
    with pytest.raises(ModelError, match=r"not packed now; call model.eval\(\) after training"):
        hfaccel.save(fast.train(), tmp_path)
    hfaccel.save(fast.eval(), tmp_path)
    assert torch.equal(states(hfaccel.load(tmp_path), batch), states(fast, batch))


def test_only_optimized_models_of_transformers_are_saved(bert, tmp_path):
    with pytest.raises(ModelError, match=r"call hfaccel.optimize\(model\) first"):
        hfaccel.save(bert, tmp_path)
    linear = hfaccel.optimize(nn.Sequential(nn.Linear(128, 128)).eval())
    with pytest.raises(ModelError, match="transformers' own classes"):
        hfaccel.save(linear, tmp_path)
    fast = hfaccel.optimize(bert)
    fast.encoder.layer[1].extra = nn.Linear(3, 3)
    with pytest.raises(ModelError, match=r"tensors differ: encoder.layer.1.extra"):
        hfaccel.save(fast, tmp_path)
    with pytest.raises(ModelError, match=r"a torch\.nn\.Module or a transformers pipeline"):
        hfaccel.save(3, tmp_path)
    assert not list(tmp_path.iterdir())


CHANGED = {
    "a class": lambda model: setattr(model.pooler, "activation", nn.Sigmoid()),
    "a number": lambda model: setattr(model.encoder.layer[1].attention.self, "scaling", 0.9),
    "a norm's number": lambda model: setattr(model.embeddings.LayerNorm, "eps", 0.5),
    "a function": lambda model: setattr(
        model.encoder.layer[0].intermediate.intermediate_act_fn, "act", torch.relu
    ),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_part_that_was_changed_is_not_lost(change, bert, tmp_path):
    fast = hfaccel.optimize(bert)
    change(fast)
    with pytest.raises(ModelError, match=r"classes or attributes of its parts differ: .*set them back"):
        hfaccel.save(fast, tmp_path / "x")


def test_a_part_that_belonged_to_a_convolution_is_not_lost(tmp_path):
    sizes = dict(embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1] * 4)
    fast = hfaccel.optimize(transformers.ResNetModel(transformers.ResNetConfig(**sizes)).eval())
    first = fast.embedder.embedder
    assert first.convolution.followers
    first.activation = nn.Sigmoid()
    with pytest.raises(ModelError, match=r"embedder\.convolution: a part whose work it does was removed"):
        hfaccel.save(fast, tmp_path / "x")


@pytest.mark.parametrize("name", [".", "nothing", "file"])
def test_only_saved_models_are_loaded(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"a folder that hfaccel.save\(model, folder\) wrote"):
        hfaccel.load(tmp_path / name)


@pytest.mark.parametrize("folder", [None, 3, ["a"]])
def test_a_folder_is_a_path(folder):
    for call in (lambda: hfaccel.load(folder), lambda: hfaccel.save(None, folder)):
        with pytest.raises(UsageError, match="the folder must be a path, but got"):
            call()
