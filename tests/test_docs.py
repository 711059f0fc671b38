"""What the documents say is what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hfaccel.commands import VERBS
from hfaccel.commands.run_options import _parser

ROOT = Path(__file__).parent.parent
NAMED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES = [*NAMED, *sorted((ROOT / "docs").glob("*.md"))]


def test_the_knobs_page_is_up_to_date():
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["knobs"]()
    assert (ROOT / "docs/knobs.md").read_text() == generated, "run `make docs`"


def test_the_families_page_is_up_to_date():
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["families"]()
    assert (ROOT / "docs/families.md").read_text() == generated, "run `make docs`"


def test_the_list_of_private_parts_is_up_to_date():
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["troubleshooting"]()
    assert (ROOT / "docs/troubleshooting.md").read_text() == generated, "run `make docs`"


def test_the_placement_page_is_up_to_date():
    generated = runpy.run_path(str(ROOT / "docs/placement.py"))["placement"]()
    assert (ROOT / "docs/placement.md").read_text() == generated, "run `make docs`"


def test_the_first_lines_of_the_readme_run_as_they_are():
    lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(list(filter(None, lines.splitlines()))) == 8
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 768])" in done.stdout and "BertModel, backend" in done.stdout


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    for name in re.findall(
        r"`((?:tests|benchmarks|hfaccel|docs|demo)/[\w/.]+\.(?:py|md))`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_options_of_the_pages_exist():
    text = "".join(page.read_text() for page in PAGES)
    known = {name for action in _parser()._actions for name in action.option_strings}
    used = {
        option
        for line in re.findall(r"hfaccel-run ([^`\n]*)", text)
        for option in re.findall(r"(?<!\S)--[\w-]+", line.split(".py")[0])
    }
    assert used <= known, used - known


def test_verbs_of_the_pages_exist():
    text = "".join(page.read_text() for page in PAGES)
    used = set(re.findall(r"`hfaccel (\w+)", text))
    assert used <= set(VERBS), used - set(VERBS)


def test_make_targets_of_the_pages_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {name for page in PAGES for name in re.findall(r"`make ([\w-]+)`", page.read_text())}
    assert used and used <= targets, used - targets
