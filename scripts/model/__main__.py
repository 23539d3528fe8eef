"""`python -m scripts.model COMMAND`: train, export, check, evaluate, card, or all of them."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from scripts.model.train import Plan, train


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.model", description=__doc__)
    parser.add_argument("command", choices=("train",))
    parser.add_argument("--work", type=Path, default=Path("build/model"), help="folder for checkpoints and logs")
    for each in fields(Plan):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default)
    args = parser.parse_args()
    plan = Plan(**{each.name: getattr(args, each.name) for each in fields(Plan)})
    train(plan, args.work)


if __name__ == "__main__":
    main()
