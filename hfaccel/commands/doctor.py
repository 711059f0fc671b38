"""hfaccel doctor: check the environment that a model would run in.

Exit code 0: all is well, 1: warnings (slower than need be), 2: errors (wrong or unusable).
"""

from __future__ import annotations

import argparse
import json

from hfaccel.doctor import CHECKS, diagnose
from hfaccel.tables import render


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hfaccel doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    diagnosis = diagnose(CHECKS)
    if options.json:
        print(json.dumps(diagnosis.to_dict(), indent=1))
        return diagnosis.exit_code
    rows = [[finding.status, finding.check, finding.message] for finding in diagnosis.findings]
    print(render("doctor", ["status", "check", "finding"], rows))
    for finding in diagnosis.findings:
        if finding.advice:
            print(f"{finding.check}: {finding.advice}")
    return diagnosis.exit_code
