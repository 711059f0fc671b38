"""The report of a study: one file of HTML, without scripts and without anything from outside.

`reading` gives a result, `figures` says which numbers are drawn, `drawing` places marks, `drawing.svg` and
`png` write them, `tables` shows every number, `page` puts all together.
"""

from hfaccel.bench.report.page import make_page
from hfaccel.bench.report.png import write_pictures
from hfaccel.bench.report.reading import Result, load

__all__ = ["Result", "load", "make_page", "write_pictures"]
