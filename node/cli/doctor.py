"""`doctor`: check this machine, and say what to do."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict

from rich.text import Text

from node.cli import checks, render
from node.cli.check import FAIL, OK, WARN
from node.cli.wrap import wrapped

_STYLE = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def run(options: Namespace) -> int:
    """Run the checks; 1 if any failed."""
    found = []
    to = render.console(sys.stdout)
    for check in checks.all_checks(os.environ):
        found.append(check)
        if not options.json:  # each as it is known: some take seconds
            first, *advice = (wrapped(line, to.width, 5) if to.is_terminal else line for line in check.lines())
            to.print(Text.assemble((first[:5], _STYLE[check.level]), first[5:]))
            for line in advice:
                to.print(Text(line))
            sys.stdout.flush()
    failed = [c for c in found if c.level == FAIL]
    if options.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in found]}, ensure_ascii=False, indent=2))
    return 1 if failed else 0
