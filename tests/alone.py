"""A coordinator without peers over the fake model, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from node.coordinator import Coordinator
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.store import Store


class Nobody:
    def peers(self) -> list[object]:
        return []


@contextlib.asynccontextmanager
async def coordinator(spec: FakeSpec) -> AsyncIterator[Coordinator]:
    engine = Engine(lambda: FakeBackend(spec), node="a" * 16)
    await engine.start()
    made = Coordinator("a" * 16, engine, Nobody(), Store())  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.stop()
        await engine.close()
