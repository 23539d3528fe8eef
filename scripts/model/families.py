"""What a word problem is, its numbers, and the families of problems that are not stories. Standard library only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from scripts.model.words import HE, ITEMS, NAMES

LIMIT = 999  # no intermediate value is larger, so an answer has at most three digits


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its integer answer.

    `steps` counts arithmetic operations, `work` is the worked solution ending in `answer: N`, and `key` is the
    structure with its numbers (no names, no nouns): what the split into training and held-out problems is made by.
    """

    question: str
    answer: int
    steps: int
    work: str
    key: str


def number(rng: random.Random, hard: bool, big: bool = False) -> int:
    """A number: up to 20, or of two digits if `hard`, at times of three if `big`."""
    if big and rng.random() < 0.3:
        return rng.randint(100, 399)
    return rng.randint(11, 99) if hard and rng.random() < 0.75 else rng.randint(2, 20)


def product(rng: random.Random, hard: bool, big: bool = False) -> tuple[int, int]:
    """The two factors of a product: the second of two digits at times if `hard`, both at times if `big`."""
    if big and rng.random() < 0.4:
        return rng.randint(13, 29), rng.choice([m for m in range(13, 35) if m % 10])
    return rng.randint(2, 9), rng.randint(11, 40) if hard and rng.random() < 0.6 else rng.randint(2, 12)


def shopping(rng: random.Random, steps: int) -> Problem | None:
    """Prices and numbers of things; what is to be paid, or what change comes back?"""
    hard = rng.random() < 0.65
    who = rng.choice(NAMES)
    they = "he" if who in HE else "she"
    kinds = rng.sample(ITEMS, (steps + 1) // 2)
    deals = [(*product(rng, hard), item) for item in kinds]
    coin = rng.choice(("coins", "euros", "dollars"))
    text = " ".join(f"{item.capitalize()} cost {p} {coin} each." for k, p, item in deals)
    text += f" {who} buys " + " and ".join(f"{k} {item}" for k, p, item in deals) + "."
    lines, total = [], 0
    for i, (k, p, item) in enumerate(deals):
        lines.append(f"{k} {item} at {p}: {k}*{p}={k * p}" + (f", {total}+{k * p}={total + k * p}" if i else ""))
        total += k * p
    key = f"shop {[(k, p) for k, p, _ in deals]}"
    if steps % 2 == 0:
        paid = rng.choice([x for x in (20, 50, 100, 150, 200, 300, 400, 500, 600, 800, 900) if x >= total] or [0])
        if not paid:
            return None
        lines.append(f"pays with {paid}: {paid}-{total}={paid - total}")
        total = paid - total
        text += f" {who} pays with {paid} {coin}. How many {coin} does {they} get back?"
        key += f" {paid}"
    else:
        text += rng.choice((f" How many {coin} does {they} pay?", f" How much is that in {coin}?"))
    return Problem(text, total, steps, "\n".join([*lines, f"answer: {total}"]), key)


def together(rng: random.Random, steps: int) -> Problem | None:
    """Several people, each compared with the one before; how many do they have together?"""
    hard = rng.random() < 0.65
    people = rng.sample(NAMES, steps // 2 + 1)
    items = rng.choice(ITEMS)
    last = total = number(rng, hard)
    text, lines, key = f"{people[0]} has {last} {items}.", [], f"together {last}"
    for before, who in pairwise(people):
        kind = rng.choice(("more", "fewer", "times"))
        n = rng.randint(2, 5) if kind == "times" else number(rng, hard)
        new = last + n if kind == "more" else last - n if kind == "fewer" else last * n
        if new < 1 or total + new > LIMIT:
            return None
        sign = {"more": "+", "fewer": "-", "times": "*"}[kind]
        how = f"{n} times as many as" if kind == "times" else f"{n} {kind} than"
        text += f" {who} has {how} {before}."
        lines.append(f"{who} has {how} {before}: {last}{sign}{n}={new}, {total}+{new}={total + new}")
        last, total, key = new, total + new, f"{key} {sign}{n}"
    if steps % 2:
        n = number(rng, hard)
        if n > total:
            return None
        text += f" {rng.choice(('They', 'Together they'))} lose {n}."
        lines.append(f"lose {n}: {total}-{n}={total - n}")
        total, key = total - n, f"{key} lose {n}"
    text += rng.choice((f" How many {items} do they have together?", " How many do they have in all?"))
    return Problem(text, total, steps, "\n".join([*lines, f"answer: {total}"]), key)


def machine(rng: random.Random, steps: int) -> Problem | None:
    """So many an hour, for so many hours, on so many days, less the broken ones, plus those in store."""
    hard = rng.random() < 0.65
    rate, hours, days = number(rng, hard), rng.randint(2, 9), rng.randint(2, 6)
    items = rng.choice(ITEMS)
    total = rate * hours
    maker = rng.choice(("A machine", "A factory", "A worker", rng.choice(NAMES)))
    text = f"{maker} makes {rate} {items} an hour for {hours} hours"
    lines, key = [f"{rate} an hour for {hours} hours: {rate}*{hours}={total}"], f"machine {rate} {hours}"
    if steps >= 3:
        text += f" a day, on {days} days"
        lines.append(f"on {days} days: {total}*{days}={total * days}")
        total, key = total * days, f"{key} {days}"
    text += "."
    n, more = number(rng, hard), number(rng, hard)
    if n > total:
        return None
    text += f" {n} are broken."
    lines.append(f"{n} are broken: {total}-{n}={total - n}")
    total, key = total - n, f"{key} -{n}"
    if steps >= 4:
        text += f" {more} more are in store."
        lines.append(f"{more} in store: {total}+{more}={total + more}")
        total, key = total + more, f"{key} +{more}"
    if total > LIMIT:
        return None
    text += f" How many good {items} are there?"
    return Problem(text, total, steps, "\n".join([*lines, f"answer: {total}"]), key)
