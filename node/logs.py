"""Logs for programs: one JSON object a line, with the id of the request that a line is about.

A request has one id on every node that works on it, so lines of all nodes come together by it. Whoever logs gives the
id as `extra={"request_id": …}`; what else `extra` holds becomes fields of the object too.
"""

from __future__ import annotations

import datetime
import json
import logging

_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_always: dict[str, str] = {}


def always(**fields: str) -> None:
    """Put fields into every line from now on, such as this node's id."""
    _always.update(fields)


class JsonLines(logging.Formatter):
    """A record as one line of JSON. Times are UTC, to the millisecond; a traceback is one field."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_always,
            **{name: value for name, value in record.__dict__.items() if name not in _USUAL},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
