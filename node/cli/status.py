"""`status`: nodes, topics and slots, as one node sees them."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from io import StringIO

from google.protobuf import json_format
from rich.console import Console
from rich.live import Live
from rich.text import Text

from node.cli import reach, render
from node.errors import ConclaveError
from node.v1 import mesh_pb2

EVERY_S = 1.0


def run(options: Namespace) -> int:
    """Show it once, or each second. Raises ConclaveError when no node answers at the start."""
    response = reach.status(options.address)
    if options.watch and sys.stdout.isatty() and not options.json:
        return _watch(options, response)
    is_first = True
    while True:
        if options.json:
            sys.stdout.write(_json(response, indent=None if options.watch else 2) + "\n")
        else:
            to = render.console(sys.stdout)
            if not is_first:
                to.print()
            render.status(to, response)
        sys.stdout.flush()
        if not options.watch:
            return 0
        is_first = False
        try:
            time.sleep(EVERY_S)
            response = reach.status(options.address)
        except KeyboardInterrupt:
            return 0


def _json(response: mesh_pb2.StatusResponse, indent: int | None) -> str:
    return json_format.MessageToJson(
        response,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        ensure_ascii=False,
        indent=indent,
    )


def _watch(options: Namespace, response: mesh_pb2.StatusResponse) -> int:
    """On a terminal: one picture, renewed in place, also while the node is away. ^C ends it."""
    to = render.console(sys.stdout)
    try:
        with Live(_picture(response, to), console=to, auto_refresh=False, screen=True) as live:
            while True:
                live.update(_picture(response, to), refresh=True)
                time.sleep(EVERY_S)
                try:
                    response = reach.status(options.address)
                except ConclaveError as e:
                    live.update(Text(f"{e.message}\n\nStill looking; ^C ends this."), refresh=True)
                    time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _picture(response: mesh_pb2.StatusResponse, like: Console) -> Text:
    drawn = Console(
        file=StringIO(),
        width=like.width,
        force_terminal=True,
        color_system=like.color_system,  # type: ignore[arg-type]  # one of rich's own names
        no_color=like.no_color,
        markup=False,
        highlight=False,
        emoji=False,
    )
    with drawn.capture() as capture:
        render.status(drawn, response)
    return Text.from_ansi(capture.get(), no_wrap=True)
