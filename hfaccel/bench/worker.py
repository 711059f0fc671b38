"""The process of one side: builds its case, then takes one sample for each line on standard input.

Answers are JSON lines on the original standard output; what the case itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from hfaccel.bench.pairs import load_case
    from hfaccel.errors import HfaccelError

    case, arguments = sys.argv[1:]
    try:
        take = load_case(case)(**json.loads(arguments))
    except HfaccelError as error:
        sys.exit(f"hfaccel: {error}")
    answers.write(json.dumps({"ready": True}) + "\n")
    for _ in sys.stdin:
        sample = take()
        answers.write(json.dumps(sample if isinstance(sample, dict) else {"seconds": sample}) + "\n")


if __name__ == "__main__":
    main()
