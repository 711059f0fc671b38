"""hfaccel bench MODEL_OR_SCRIPT: real studies of tiny subjects, from the command line to the file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfaccel.bench import cases, results, study
from hfaccel.bench.repeated import REPEATED
from hfaccel.bench.setting import Setting
from hfaccel.commands import bench, bench_study, main
from hfaccel.commands.bench_options import parse
from hfaccel.commands.bench_progress import Left, readable
from hfaccel.errors import UsageError

PROGRAM = str(Path(sys.executable).with_name("hfaccel"))
FEW = ["--pairs", "2", "--seconds", "0.001", "--no-limits"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Makes a script in the current folder, which is a new one."""
    monkeypatch.chdir(tmp_path)

    def make(text):
        Path("a.py").write_text(text)
        return "a.py"

    return make


@pytest.fixture
def described_here(monkeypatch):
    """The model is described in this process, where torch is loaded already."""
    monkeypatch.setattr(
        bench_study, "describe", lambda ground, backends, timeout: cases.describe(ground.subject, backends)()
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, calm):
    """The file of a study of a tiny encoder: stock, the engine, and a setting that cannot be."""
    path = tmp_path_factory.mktemp("encoder") / "result.json"
    arguments = ["random:tiny", "--batch-sizes", "2", "--lengths", "8", "--precisions", "fp32"]
    arguments += ["--backends", "torch,openvino", "--huge-pages", "off", "--allocators", "default"]
    assert main(["bench", *arguments, *FEW, "--json", str(path)]) == 0
    return path, arguments


def test_a_study_of_an_encoder(encoder):
    found = results.read(encoder[0])
    cells = {cell["setting"]["backend"]: cell for cell in found["cells"]}
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "eager": "measured",
        "torch": "measured",
        "openvino": "skipped",
    }
    assert cells["torch"]["verified"]["largest_difference"] < cells["torch"]["verified"]["allowed"]
    assert cells["torch"]["ratio"]["pairs"] >= 2 and cells["torch"]["ratio"]["to"] == "baseline"
    assert cells["eager"]["threads"] == cells["torch"]["threads"] == found["host"]["cores"]
    assert "openvino" in cells["openvino"]["reason"]
    assert found["subject"] == "random:tiny" and found["versions"]["torch"]
    assert found["axes"]["backends"] == ["torch", "openvino"] and found["host"]["facts"]["kernel"]


def test_a_finished_study_measures_nothing_again(encoder, described_here, monkeypatch, capsys):
    path, arguments = encoder
    before = results.read(path)["cells"]
    monkeypatch.setattr(study, "measure", None)
    assert main(["bench", *arguments, *FEW, "--json", str(path)]) == 0
    assert "eager fp32" in capsys.readouterr().out
    by_identity = {results.identity_of(cell): cell for cell in before}
    assert {results.identity_of(cell): cell for cell in results.read(path)["cells"]} == by_identity


def test_a_file_of_another_subject_is_refused(encoder, described_here, capsys):
    path, _ = encoder
    assert main(["bench", "random:tiny-decoder", *FEW, "--json", str(path), "--backends", "torch"]) == 2
    assert "can be continued with the same subject" in capsys.readouterr().err


def test_a_file_is_compared_with_itself(encoder, capsys):
    path = str(encoder[0])
    assert main(["bench", "compare", path, path]) == 0
    assert "skipped in the first" in capsys.readouterr().out
    assert main(["bench", "--compare", path, path, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in rows] == ["no difference shown", "no verdict"]


def test_generation_has_its_times_and_its_tokens_are_judged(described_here, tmp_path, capsys):
    path = tmp_path / "result.json"
    arguments = ["random:tiny-decoder", "--lengths", "4", "--new-tokens", "3", "--precisions", "fp32"]
    assert main(["bench", *arguments, "--backends", "torch", *FEW, "--json", str(path)]) == 0
    stock, fast = results.read(path)["cells"]
    assert stock["first_token_ms"] > 0 and fast["per_token_ms"] > 0
    assert fast["verified"] == {"largest_difference": 0.0, "allowed": 0.01}
    assert fast["setting"]["allocator"] == "auto" and fast["throughput_unit"] == "tokens/s"
    assert "group 1 of 1" in capsys.readouterr().err


def test_the_cells_of_a_dry_run_are_printed_and_no_file_is_made(
    described_here, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "random:tiny", "--quick", "--dry-run", "--instances", "1,64"]) == 0
    printed = capsys.readouterr().out
    assert (
        "(8,128)" in printed and "64 instances" in printed and "settings are still to be measured" in printed
    )
    assert list(tmp_path.iterdir()) == []


# Scripts


def test_a_script_is_run_with_its_arguments(script):
    name = script("import sys; open('log', 'a').write(sys.argv[1] + '\\n')")
    assert main(["bench", name, *FEW, "--json", "out.json", "--", "--epochs"]) == 0
    found = results.read("out.json")
    assert found["subject"] == "a.py --epochs"
    assert found["cells"][0]["work"] == {"kind": "script", "command": ["a.py", "--epochs"]}
    assert [cell["status"] for cell in found["cells"]] == ["measured", "measured"]
    assert found["cells"][1]["verified"] is None and found["cells"][1]["throughput_unit"] == "runs/s"
    assert set(Path("log").read_text().split()) == {"--epochs"}


def test_a_script_that_crashes_sometimes_is_told_and_measured_again(script, capsys):
    name = script(
        "import os, sys\n"
        "runs = len(open('log').read()) if os.path.exists('log') else 0\n"
        "open('log', 'a').write('x')\n"
        "if runs == 6 or 'HFACCEL_RUN' in os.environ and os.path.exists('bad'): sys.exit('sometimes')\n"
    )
    Path("bad").write_text("")
    assert main(["bench", name, *FEW, "--json", "out.json"]) == 1
    reason = "it ended with exit code 1: the script ended with exit code 1: sometimes"
    assert results.read("out.json")["cells"][1]["reason"] == reason
    assert "failed" in capsys.readouterr().out
    Path("bad").unlink()
    Path("log").write_text("x" * 100)
    assert main(["bench", name, *FEW, "--json", "out.json"]) == 0
    assert {cell["status"] for cell in results.read("out.json")["cells"]} == {"measured"}


def test_a_script_that_hangs_is_ended(script, capsys):
    name = script("import os, time\nif 'HFACCEL_RUN' in os.environ: time.sleep(600)")
    assert main(["bench", name, *FEW, "--timeout", "3", "--json", "out.json"]) == 1
    assert [cell["status"] for cell in results.read("out.json")["cells"]] == ["measured", "failed"]
    assert "gave no answer within 3 seconds" in results.read("out.json")["cells"][1]["reason"]


def test_ctrl_c_keeps_what_was_measured_and_the_study_goes_on(script):
    name = script("import time; time.sleep(0.05)")
    axes = ["--allocators", "auto,glibc", "--huge-pages", "auto,off"]  # two groups
    command = [PROGRAM, "bench", name, *FEW, *axes, "--json", "out.json"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    end = time.monotonic() + 60
    while '"measured"' not in (Path("out.json").read_text() if Path("out.json").exists() else ""):
        assert time.monotonic() < end and started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130 and "Traceback" not in said
    assert said.endswith("hfaccel: stopped; the same command goes on from out.json\n")
    kept = {results.identity_of(cell): cell for cell in results.read("out.json")["cells"]}
    assert len(kept) == 4
    assert main(command[1:]) == 0
    found = {results.identity_of(cell): cell for cell in results.read("out.json")["cells"]}
    assert len(found) == 5 and kept.items() <= found.items()


@pytest.mark.parametrize("place", ["plan", "_study"])
def test_ctrl_c_at_any_moment_ends_with_130(script, monkeypatch, capsys, place):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_study, place, interrupted)
    assert main(["bench", script("pass"), "--json", "out.json"]) == 130
    assert capsys.readouterr().err.startswith("hfaccel: stopped")


def test_a_file_that_cannot_be_written_is_one_line_before_anything_runs(script, capsys):
    name = script("open('ran', 'w')")
    assert main(["bench", name, *FEW, "--json", "no/folder/out.json"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hfaccel: results must be written to a file") and said.count("\n") == 1
    assert not Path("ran").exists()


def test_a_disk_that_is_full_in_the_middle_ends_with_1_and_keeps_the_file(script, monkeypatch, capsys):
    name, written = script("pass"), []
    write = results.write

    def full(document, path):
        if any(cell["status"] == "measured" for cell in document["cells"]):
            raise results.WriteError("results must be written to a file, but the disk is full")
        written.append(path)
        write(document, path)

    monkeypatch.setattr(results, "write", full)
    assert main(["bench", name, *FEW, "--json", "out.json"]) == 1
    assert "hfaccel: results must be written" in capsys.readouterr().err
    assert written and results.read("out.json")["cells"] == []


# Options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["random:tiny", "--batch-sizes", "0"], "a number from 1 on is expected, but got '0'"),
        (["random:tiny", "--lengths", "8,"], "a number from 1 on is expected, but got ''"),
        (["random:tiny", "--pairs", "x"], "a number from 1 on is expected"),
        (["random:tiny", "--seconds", "nan"], "seconds above 0 are expected, but got 'nan'"),
        (["random:tiny", "--timeout", "-1"], "seconds above 0 are expected"),
        (["random:tiny", "--nonsense"], "unrecognized arguments: --nonsense; see hfaccel bench --help"),
        (["--quick"], "a model or a script must be given"),
        (["no.py"], "a script must exist, but there is no file 'no.py'"),
        (["./no/model"], "a model must be a folder that exists, but './no/model' does not"),
        (["random:tiny", "--", "--epochs"], "arguments after -- are those of a script"),
        (["--repeat", "nonsense"], "argument --repeat: invalid choice"),
    ],
)
def test_bad_options_are_one_line_before_anything_starts(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(bench_study, "plan", None)
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--precisions", "fp64", "precision must be one of fp32"),
        ("--allocators", "hoard", "allocator must be one of default"),
        ("--wait-policies", "lazy", "wait_policy must be one of"),
    ],
)
def test_values_of_axes_are_checked_before_anything_is_measured(script, capsys, option, value, said):
    assert main(["bench", script("pass"), option, value]) == 2
    assert said in capsys.readouterr().err and not list(Path.cwd().glob("*.json"))


def test_an_unknown_model_is_one_line(capsys):
    assert main(["bench", "random:nonsense"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hfaccel: a model must be a folder") and said.count("\n") == 1


def test_axes_are_lists(tmp_path):
    options = parse(["random:tiny", "--batch-sizes", "8, 1,8", "--token-budgets", "none,64", "--quick"])
    assert options.axes.batch_sizes == (8, 1) and options.axes.token_budgets == (None, 64)
    assert options.pairs == 5 and options.path.name == "hfaccel-bench-random-tiny.json"
    assert parse(["random:tiny", "--task", "fill-mask"]).texts == "docstrings"


def test_a_model_named_like_a_kind_is_given_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("memory").mkdir()
    assert bench.divided(["memory", "--quick"]) == ("memory", ["--quick"])
    assert bench.divided(["./memory", "--quick"]) == ("study", ["./memory", "--quick"])
    assert bench.divided(["--compare", "a", "b"]) == ("compare", ["a", "b"])
    assert parse(["./memory"]).script == ()


@pytest.mark.parametrize("name", REPEATED)
def test_studies_of_the_repository_can_be_repeated(name):
    options = parse(["--repeat", name, "--pairs", "9"])
    assert options.subject.startswith("random:") and options.pairs == 9
    assert parse([f"--repeat={name}", "--lengths", "8"]).axes.lengths == (8,)


def test_cells_in_common_are_needed_to_compare(tmp_path):
    for name in "ab":
        results.write(results.new("x", Setting(), {}, []), tmp_path / name)
    with pytest.raises(UsageError, match="two results must have cells in common"):
        bench.run(["compare", str(tmp_path / "a"), str(tmp_path / "b")])


def test_the_time_left_follows_from_the_groups_that_are_done():
    left = Left()
    left.begin(4)
    assert str(left) == ""
    left.start -= 60
    left.advance()
    assert str(left) == "3 min left"
    assert [readable(seconds) for seconds in (5, 100, 7200)] == ["5 s", "2 min", "2.0 h"]


def test_memory_and_versions_are_known():
    facts = bench_study.read_host()
    assert study.free_mib(facts, lambda: None) is None or facts.limits.memory_limit
    assert study.free_mib(facts, lambda: 1 << 20) == 1.0
    assert study.side_mib(1000) > 2500 and study.side_mib(None) == study.PROCESS_MIB
    assert bench_study._available() > 0 and "torch" in study.versions()
