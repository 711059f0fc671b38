"""hfaccel bench report: a study's result as one page of HTML, with pictures and every number.

The page needs nothing but a browser: it holds its pictures, loads nothing and runs no script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hfaccel.bench.report import load, make_page, write_pictures
from hfaccel.bench.report.png import check_matplotlib
from hfaccel.errors import HfaccelError, UsageError


def run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    source = Path(options.result)
    target = Path(options.out) if options.out else source.with_suffix(".html")
    if not target.resolve().parent.is_dir():
        raise UsageError(f"a page must be in a folder that exists, but got {str(target)!r}")
    if target.resolve() == source.resolve():
        raise UsageError(f"a page must not replace the result, but both are {str(target)!r}; give --out")
    if options.png:
        check_matplotlib()
    result = load(source)
    _write(target, make_page(result))
    written = write_pictures(result, Path(options.png)) if options.png else []
    print("\n".join(map(str, [target, *written])))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfaccel bench report", description=__doc__, allow_abbrev=False)
    parser.add_argument("result", metavar="RESULT.json", help="a file of hfaccel bench or hfaccel tune")
    parser.add_argument("--out", metavar="FILE", help="the page; the result's name with .html if not given")
    parser.add_argument("--png", metavar="FOLDER", help="write each picture as a PNG as well")
    return parser


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HfaccelError(f"the page cannot be written: {error}") from None
