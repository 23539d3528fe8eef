"""One JSON object a line, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys

from node import logs


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("node.x", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_a_line_is_an_object_with_its_fields() -> None:
    line = logs.JsonLines().format(record("two %s", "parts", request_id="r1", tokens=7))
    found = json.loads(line)
    assert found["message"] == "two parts"
    assert (found["level"], found["logger"], found["request_id"], found["tokens"]) == ("warning", "node.x", "r1", 7)
    assert "\n" not in line
    assert set(found) <= {"time", "level", "logger", "message", "request_id", "tokens", "node"}


def test_nothing_breaks_a_line() -> None:
    made = record("a\nb \x1b[2J %s", object())
    try:
        raise ValueError("why\nnot")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = logs.JsonLines().format(made)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "ValueError: why\nnot" in json.loads(line)["error"]
