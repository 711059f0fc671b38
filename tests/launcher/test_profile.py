"""--profile: knobs that were found by tuning, below the environment and above the rules."""

from __future__ import annotations

import json

import pytest
from launching import CORES, launched, refused

from hfaccel.commands.run_options import parse
from hfaccel.errors import UsageError
from hfaccel.launcher import prepare


@pytest.fixture
def profile(tmp_path):
    def write(content):
        path = tmp_path / "profile.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def planned(*arguments, **environment):
    _, settings, program = parse([*arguments, "-c", "pass"])
    (launch,) = prepare(program, settings, environment)
    return launch


def test_a_profile_is_carried_out(profile):
    path = profile({"threads": 1, "omp_wait_policy": "passive", "allocator": "glibc"})
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'])"
    assert launched("--profile", path, "-c", code).stdout == b"1 passive\n"


def test_it_wins_over_the_rule_and_says_so(profile):
    chosen = planned("--profile", profile({"threads": 7})).plan["threads"]
    assert (chosen.value, chosen.source) == (7, "profile")
    assert planned().plan["threads"].source == "rule"


def test_the_environment_wins_over_it(profile):
    launch = planned("--profile", profile({"threads": 7}), OMP_NUM_THREADS="5")
    assert launch.plan["threads"].source == "environment"
    assert launch.environment["OMP_NUM_THREADS"] == "5"


def test_an_option_wins_over_both(profile):
    launch = planned("--profile", profile({"threads": 7}), "--threads", "1", OMP_NUM_THREADS="5")
    assert launch.plan["threads"].source == "user"
    assert launch.environment["OMP_NUM_THREADS"] == "1"


def test_a_variable_that_is_empty_is_not_set(profile):
    launch = planned("--profile", profile({"threads": 7}), OMP_NUM_THREADS="")
    assert launch.environment["OMP_NUM_THREADS"] == "7"


def test_what_it_does_not_name_is_left_to_the_rules(profile):
    with_profile, without = planned("--profile", profile({"threads": 1})).plan, planned().plan
    others = [choice for choice in without.choices if choice.knob not in ("threads", "tokenizer_threads")]
    assert others == [with_profile[choice.knob] for choice in others]


def test_an_empty_profile_changes_nothing(profile):
    assert planned("--profile", profile({})).plan == planned().plan


def test_auto_leaves_a_knob_to_the_rule_as_the_option_does(profile):
    """A tuned file names every knob; not every one of them must have been tuned."""
    chosen = planned("--profile", profile({"allocator": "auto", "huge_pages": "auto"})).plan
    assert [chosen[knob].source for knob in ("allocator", "huge_pages")] == ["rule", "rule"]


def test_threads_fit_the_cpus_of_a_profile(profile):
    """As with --cores-list: two threads on one CPU would wait for each other."""
    plan = planned("--profile", profile({"affinity": str(CORES[0])})).plan
    assert plan["affinity"].value == (CORES[0],)
    assert plan["threads"].value == 1


def test_places_asked_for_win_over_it(profile):
    path = profile({"threads": 7, "affinity": "off"})
    plan = planned("--profile", path, "--cores-list", str(CORES[-1])).plan
    assert plan["threads"].value == 1 and plan["affinity"].value == (CORES[-1],)


@pytest.mark.parametrize(
    ("content", "rule", "got"),
    [
        ("", "a profile must be JSON", "profile.json"),
        ("{", "a profile must be JSON", "profile.json"),
        ("{'threads': 1}", "a profile must be JSON", "profile.json"),
        ("[]", "a profile must map knobs to values", "holds list"),
        ("null", "a profile must map knobs to values", "holds NoneType"),
        ("3", "a profile must map knobs to values", "holds int"),
        ('{"thread": 1}', "must be one of threads, ", "but got thread"),
        ('{"threads": 1, "Threads": 1, "x": 2}', "must be one of threads, ", "but got Threads, x"),
        ('{"threads": 0}', "`threads >= 1` must hold", "but got 0"),
        ('{"threads": 1.5}', "`threads >= 1` must hold", "but got 1.5"),
        ('{"threads": "many"}', "`threads >= 1` must hold", "but got 'many'"),
        ('{"threads": [1]}', "`threads >= 1` must hold", "but got [1]"),
        ('{"threads": 1e999}', "`threads >= 1` must hold", "but got inf"),
        ('{"threads": NaN}', "`threads >= 1` must hold", "but got nan"),
        ('{"affinity": "x"}', "CPU numbers such as 0-3,8", "but got 'x'"),
        ('{"affinity": 5}', "CPU numbers such as 0-3,8", "but got 5"),
        ('{"affinity": []}', "within the affinity mask", "but got []"),
        ('{"affinity": "64000"}', "within the affinity mask", "but got '64000'"),
        ('{"memory_policy": "near:0"}', "a memory policy is off, or preferred", "but got 'near:0'"),
        ('{"omp_wait_policy": "lazy"}', "active or passive", "but got 'lazy'"),
        ('{"omp_placement": 1}', "close, spread or off", "but got 1"),
        ('{"allocator": "fastest"}', "the allocator must be", "but got 'fastest'"),
        ('{"allocator": ["glibc"]}', "the allocator must be", "but got ['glibc']"),
        ('{"huge_pages": "1G"}', "huge_pages must be auto, thp or off", "but got '1G'"),
        ('{"hub_cache": "here"}', "off or an absolute path", "but got 'here'"),
        ('{"primitive_cache": -1}', "0 or more shapes", "but got -1"),
    ],
)
def test_a_profile_that_breaks_a_rule_is_one_line(profile, content, rule, got):
    with pytest.raises(UsageError) as caught:
        planned("--profile", profile(content))
    text = str(caught.value)
    assert rule in text and got in text and "\n" not in text


@pytest.mark.parametrize("content", ['{"hub_cache": "/a\\u0000b"}', '{"cuda_allocator": "\\ud800"}'])
def test_text_that_no_variable_can_hold_is_one_line(profile, content):
    assert "must" in refused("--profile", profile(content), "-c", "pass")


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "profile.json"
    path.write_bytes(b'{"threads": 1, "x": "\xff"}')
    assert "a profile must be JSON" in refused("--profile", str(path), "-c", "pass")


@pytest.mark.parametrize("path", ["no-such.json", "", "."])
def test_a_profile_that_cannot_be_read_is_one_line(path, tmp_path):
    text = refused(f"--profile={path}", "-c", "pass", cwd=tmp_path)
    assert "a profile must be a readable file" in text and repr(path) in text
