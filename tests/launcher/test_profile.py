"""--profile: knobs that were found by tuning, below the environment and above the rules."""

from __future__ import annotations

import pytest
from launching import CORES, FACTS, launched, needs_two_cores, refused

from hfaccel.commands.run_options import parse
from hfaccel.errors import UsageError
from hfaccel.launcher import prepare
from hfaccel.plan.profile import Profile, kind_of, write_profile


@pytest.fixture
def profile(tmp_path):
    def write(content):
        path = tmp_path / "profile.toml"
        path.write_text(content if isinstance(content, str) else write_profile(Profile(knobs=content)))
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


KIND = kind_of(FACTS)._asdict()


def text_of(**tables):
    return write_profile(Profile(**tables))


def test_a_profile_of_this_kind_of_host_is_used(profile):
    path = profile(text_of(knobs={"threads": 1}, host=KIND))
    assert planned("--profile", path).plan["threads"].source == "profile"


def test_a_profile_of_another_kind_of_host_is_refused_with_the_reason(profile):
    path = profile(text_of(knobs={"threads": 1}, host={**KIND, "cores": 640}))
    text = refused("--profile", path, "-c", "pass")
    assert f"its cores is 640, here {KIND['cores']}" in text and "run hfaccel tune here" in text


def test_a_rank_has_fewer_cores_than_the_host_that_was_tuned(profile):
    path = profile(text_of(host=KIND))
    ranks = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(len(CORES))}
    if len(CORES) > 1:
        with pytest.raises(UsageError, match="its cores is"):
            planned("--profile", path, **ranks)


@needs_two_cores
def test_the_instances_of_a_profile_are_started(profile):
    path = profile(text_of(instances={"count": 2, "cores": 1}))
    done = launched("--profile", path, "-c", "import os; print(os.environ['HFACCEL_INSTANCES'])")
    assert sorted(done.stdout.split(b"\n")) == [b"", b"[0] 2", b"[1] 2"]


@needs_two_cores
def test_one_instance_of_a_profile_can_be_started(profile):
    path = profile(text_of(instances={"count": 2, "cores": 1}))
    assert planned("--profile", path, "--instance-idx", "1").plan["affinity"].value == (CORES[1],)


@needs_two_cores
def test_places_asked_for_win_over_the_instances_of_a_profile(profile):
    path = profile(text_of(instances={"count": 2, "cores": 1}))
    assert planned("--profile", path, "--ninstances", "1").slot.instances == 1


def test_instances_of_a_profile_beyond_the_cores_are_refused(profile):
    path = profile(text_of(instances={"count": 2, "cores": 1000}))
    assert "cores per instance <= cores` must hold" in refused("--profile", path, "-c", "pass")


@pytest.mark.parametrize(
    ("content", "rule", "got"),
    [
        ("{", "a profile must be TOML", "profile.toml"),
        ('{"threads": 1}', "a profile must be TOML", "profile.toml"),
        ("threads = 1", "the tables of a profile must be among knobs, ", "has threads"),
        ("knobs = 3", "[knobs] must be a table", "knobs = 3"),
        ("[knob]", "the tables of a profile must be among knobs, ", "has knob"),
        ("format = 2", "must have the format 1", "has 2"),
        ("format = true", "must have the format 1", "has True"),
        ("[knobs]\nthread = 1", "must be one of threads, ", "but got thread"),
        ("[knobs]\nthreads = 1\nThreads = 1\nx = 2", "must be one of threads, ", "but got Threads, x"),
        ("[host]\nkernel = '6'", "must be among architecture, processor, ", "has kernel"),
        ("[instances]\nnumber = 2", "must be among count, cores", "has number"),
        ("[instances]\ncount = 0", "`instances.count >= 1` must hold", "but got 0"),
        ("[instances]\ncount = 'two'", "`instances.count >= 1` must hold", "but got 'two'"),
        ("[instances]\ncores = 1.5", "`instances.cores >= 1` must hold", "but got 1.5"),
        ("[model]\ndtype = 'x'", "must be among backend, precision", "has dtype"),
        ("[model]\nbackend = 3", "model.backend must be a text", "but got 3"),
        ("[knobs]\nthreads = 0", "`threads >= 1` must hold", "but got 0"),
        ("[knobs]\nthreads = 1.5", "`threads >= 1` must hold", "but got 1.5"),
        ("[knobs]\nthreads = 'many'", "`threads >= 1` must hold", "but got 'many'"),
        ("[knobs]\nthreads = [1]", "`threads >= 1` must hold", "but got [1]"),
        ("[knobs]\nthreads = inf", "`threads >= 1` must hold", "but got inf"),
        ("[knobs]\nthreads = nan", "`threads >= 1` must hold", "but got nan"),
        ("[knobs]\nthreads = 2026-11-28", "`threads >= 1` must hold", "but got datetime.date"),
        ("[knobs]\ninterop_threads = 0", "`threads >= 1` must hold", "but got 0"),
        ("[knobs]\naffinity = 'x'", "CPU numbers such as 0-3,8", "but got 'x'"),
        ("[knobs]\naffinity = 5", "CPU numbers such as 0-3,8", "but got 5"),
        ("[knobs]\naffinity = []", "within the affinity mask", "but got []"),
        ("[knobs]\naffinity = '64000'", "within the affinity mask", "but got '64000'"),
        ("[knobs]\nmemory_policy = 'near:0'", "a memory policy is off, or preferred", "but got 'near:0'"),
        ("[knobs]\nomp_wait_policy = 'lazy'", "active or passive", "but got 'lazy'"),
        ("[knobs]\nomp_placement = 1", "close, spread or off", "but got 1"),
        ("[knobs]\nallocator = 'fastest'", "the allocator must be", "but got 'fastest'"),
        ("[knobs]\nallocator = ['glibc']", "the allocator must be", "but got ['glibc']"),
        ("[knobs]\nhuge_pages = '1G'", "huge_pages must be auto, thp or off", "but got '1G'"),
        ("[knobs]\nhub_cache = 'here'", "off or an absolute path", "but got 'here'"),
        ("[knobs]\nprimitive_cache = -1", "0 or more shapes", "but got -1"),
        ("[" * 5000, "a profile must be TOML", "profile.toml"),
    ],
)
def test_a_profile_that_breaks_a_rule_is_one_line(profile, content, rule, got):
    with pytest.raises(UsageError) as caught:
        planned("--profile", profile(content))
    text = str(caught.value)
    assert rule in text and got in text and "\n" not in text


def test_text_that_no_variable_can_hold_is_one_line(profile):
    path = profile('[knobs]\nhub_cache = "/a\\u0000b"')
    assert "must" in refused("--profile", path, "-c", "pass")


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "profile.toml"
    path.write_bytes(b"[knobs]\nthreads = 1 # \xff")
    assert "a profile must be TOML" in refused("--profile", str(path), "-c", "pass")


@pytest.mark.parametrize("path", ["no-such.toml", "", "."])
def test_a_profile_that_cannot_be_read_is_one_line(path, tmp_path):
    text = refused(f"--profile={path}", "-c", "pass", cwd=tmp_path)
    assert "a profile must be a readable file" in text and repr(path) in text
