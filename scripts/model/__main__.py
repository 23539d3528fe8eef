"""`python -m scripts.model COMMAND`: train, export, check, evaluate, card, or all of them in this order."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from scripts.model.train import Plan, polish, train

SHIPPED = Path("node/models/bundled/conclave-demo.gguf")
COMMANDS = ("train", "polish", "export", "check", "evaluate", "card")


def main() -> None:
    """Run one command, or all."""
    parser = argparse.ArgumentParser(prog="python -m scripts.model", description=__doc__)
    parser.add_argument("command", choices=("all", *COMMANDS))
    parser.add_argument("--work", type=Path, default=Path("build/model"), help="checkpoint, log and figures")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the GGUF file")
    parser.add_argument("--kind", choices=("f16", "q8_0", "f32"), default="f16", help="type of the matrices")
    parser.add_argument("--n", type=int, default=300, help="held-out word problems; fewer of everything else")
    for each in fields(Plan):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default)
    args = parser.parse_args()
    for command in COMMANDS if args.command == "all" else (args.command,):
        print(f"== {command}", flush=True)
        _run(command, args)


def _run(command: str, args: argparse.Namespace) -> None:
    # Each command imports only what it needs: llama.cpp's bindings are needed by `check` alone.
    if command in ("train", "polish"):
        plan = Plan(**{each.name: getattr(args, each.name) for each in fields(Plan)})
        (train if command == "train" else polish)(plan, args.work)
    elif command == "export":
        from scripts.model.export import export

        print(f"{args.out}: {export(args.work / 'model.pt', args.out, args.kind):,} bytes")
    elif command == "check":
        from scripts.model.check import check

        found = check(args.work / "model.pt", args.out)
        (args.work / "checks.json").write_text(json.dumps(found, indent=1))
        print(json.dumps(found))
    elif command == "evaluate":
        from scripts.model.evaluate import main as evaluate

        evaluate(args.out, args.work, args.n)
    else:
        from scripts.model.card import card

        text = card(args.out, args.work)
        (args.out.parent / "README.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
