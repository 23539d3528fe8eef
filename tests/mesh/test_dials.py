"""Who is called first of all that are said to exist."""

import asyncio
import contextlib

from node.mesh.dials import Dials


class Calls:
    """Calls that go on until they are told to end; `begun` in the order in which they got their places."""

    def __init__(self, most: int = 3, again: int = 2) -> None:
        self.dials = Dials(most, again)
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, failures: int = 0) -> None:
        async def call() -> None:
            async with self.dials.place(failures):
                self.begun.append(name)
                await asyncio.Event().wait()

        self.tasks[name] = asyncio.create_task(call())
        await settled()

    async def end(self, name: str) -> None:
        self.tasks[name].cancel()
        await settled()

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_news_goes_before_what_waits() -> None:
    calls = Calls(most=1)
    for name in ("running", "old", "newer", "newest"):
        await calls.add(name)
    for name in ("running", "newest", "newer"):
        await calls.end(name)
    assert calls.begun == ["running", "newest", "newer", "old"]
    await calls.close()


async def test_what_failed_before_never_has_all_the_places() -> None:
    calls = Calls(most=3, again=2)
    for i in range(5):
        await calls.add(f"again{i}", failures=1 + i)
    assert calls.begun == ["again0", "again1"]
    await calls.add("new")
    assert calls.begun[2:] == ["new"]
    await calls.end("again0")
    assert calls.begun[3:] == ["again2"], "who failed least often is next"
    await calls.end("new")
    assert len(calls.begun) == 4
    await calls.close()


async def test_who_is_cancelled_at_any_moment_keeps_no_place() -> None:
    calls = Calls(most=1)
    await calls.add("first")
    await calls.add("waits")
    await calls.add("leaves")
    await calls.end("leaves")  # while it waits
    # In one moment: the place becomes free and goes to who is next, who is cancelled before its task runs again.
    calls.tasks["first"].cancel()
    await asyncio.sleep(0)
    calls.tasks["waits"].cancel()
    never = asyncio.create_task(calls.dials._take(0))
    never.cancel()  # before its first step: it asked for nothing
    await settled()
    with contextlib.suppress(asyncio.CancelledError):
        await never
    for name in ("one", "two"):
        await calls.add(name)
    assert calls.begun == ["first", "one"]
    await calls.close()
    assert (calls.dials._busy, calls.dials._busy_again, len(calls.dials._waiting)) == (0, 0, 0)
