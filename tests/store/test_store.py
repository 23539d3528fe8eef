"""Topics: the greatest version wins wherever it comes from, memory has an end, a disk that fails costs no answer."""

import asyncio
import errno
import itertools
import os
import stat
from pathlib import Path

import pytest

from node.core.log import NOTHING, Entry, Taken
from node.errors import NotFound, Overloaded
from node.store import Store, topics
from node.store import files as files_module
from node.types import Message, ToolCall, Version


def v(turn: int, epoch: int = 0, node: str = "n") -> Version:
    return Version(epoch, turn, node)


def entry(version: Version, parent: Version = NOTHING, text: str = "hi", **more: object) -> Entry:
    return Entry(version, parent, (Message("user", text), Message("assistant", "yes")), **more)  # type: ignore[arg-type]


def loaded(directory: Path) -> Store:
    store = Store(directory)
    store.load()
    return store


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


VERSIONS = [v(1, node="b"), v(2, node="a"), v(2, node="b"), v(1, 1, "a")]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_the_greatest_version_wins_in_any_order(order: tuple[int, ...]) -> None:
    store = Store()
    for at in order:
        held = store.version("t")
        kept = await store.add("t", entry(VERSIONS[at], text=str(at)))
        assert kept.taken == (Taken.HEAD if VERSIONS[at] > held else Taken.BRANCH)
        assert not kept.on_disk, "there is none"
    assert store.version("t") == VERSIONS[3]
    assert store.get("t").messages[0].content == "3"


async def test_what_is_not_held() -> None:
    store = Store()
    assert store.version("t") == Version()
    assert store.list() == []
    assert store.answered("r") is None
    with pytest.raises(NotFound, match="topic 't' is unknown here"):
        store.get("t")


async def test_the_list_is_by_name_and_counts_bytes() -> None:
    store = Store()
    call = Message("assistant", "", (ToolCall("add", '{"a": 1}'),))
    await store.add("b", Entry(v(1), messages=(Message("user", "ü"), call), tokens=7))
    await store.add("a", entry(v(3)))
    a, b = store.list()
    assert (a.topic, a.version, a.bytes) == ("a", v(3), 5)
    assert (b.topic, b.tokens, b.bytes) == ("b", 7, 2 + 3 + 8)


async def test_without_a_disk_the_longest_unused_topic_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "MAX_TOPICS", 3)
    store = Store()
    for name in "abc":
        await store.add(name, entry(v(1)))
    store.get("a")
    store.version("b")  # asking for a version is no use of it
    await store.add("d", entry(v(1)))
    assert [t.topic for t in store.list()] == ["a", "c", "d"]


async def test_with_a_disk_it_leaves_memory_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(topics, "MAX_BYTES", 1000)
    store = loaded(tmp_path)
    for name in "abcd":
        await store.add(name, entry(v(1), text=name * 400))
    assert store._bytes <= 1000
    assert len(store._logs) == 2
    assert [t.topic for t in store.list()] == list("abcd")
    for name in "abcd":
        assert store.get(name).messages[0].content == name * 400
    await store.add("a", entry(v(2), v(1)))
    assert len(store.get("a").messages) == 4
    assert store._bytes <= 1000


async def test_who_else_holds_a_topic() -> None:
    store = Store()
    await store.add("t", entry(v(1)))
    store.add_replica("t", v(1), "b")
    store.add_replica("t", v(1), "b")
    store.add_replica("t", v(2), "c")  # of a version that is not held
    store.add_replica("u", v(1), "c")
    assert [(t.topic, t.replicas) for t in store.list()] == [("t", ("b",))]
    await store.add("t", entry(v(2), v(1)))
    assert store.get("t").replicas == (), "of the new version nothing is known yet"


async def test_a_restart_brings_everything_back(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    call = ToolCall("add", '{"a": 1}', "c1")
    odd = (Message("user", "line\nbreak ü \ud800 \u2028"), Message("assistant", "", (call,)))
    assert (await store.add("a/../b\n", Entry(v(1), messages=odd, tokens=9, request_id="r1"))).on_disk
    await store.add("a/../b\n", entry(v(2), v(1), tokens=20, request_id="r2"))
    await store.add("a/../b\n", entry(v(2, node="m"), v(1), "branch"))
    await store.add("a/../b\n", entry(v(1, 1, "z"), v(1), "head", anew=True))
    await store.add("gone", entry(v(1)))
    await store.add("gone", Entry(v(2), v(1), forgotten=True))
    store.close()
    again = loaded(tmp_path)
    assert again.list(forgotten=True) == store.list(forgotten=True)
    assert again.log("a/../b\n").entries == store.log("a/../b\n").entries
    assert again.log("a/../b\n").branches() == [v(2, node="m"), v(2)]
    assert [t.branches for t in again.list() if t.topic == "a/../b\n"] == [2]
    assert again.log("gone").is_forgotten
    with pytest.raises(NotFound, match="was forgotten"):
        again.get("gone")
    for path in files(tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "hi" not in path.read_text() or "gone" not in path.read_text(), "what was forgotten is not on disk"


async def test_the_answer_to_a_request_is_known_after_a_restart(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    await store.add("t", entry(v(1), request_id="r1"))
    found = loaded(tmp_path).answered("r1")
    assert found is not None
    assert (found[0], found[1].version) == ("t", v(1))


async def test_a_torn_tail_is_healed_at_every_length(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    await store.add("t", entry(v(1)))
    [path] = files(tmp_path)
    whole_first = path.stat().st_size
    await store.add("t", entry(v(2), v(1)))
    whole = path.read_bytes()
    for length in range(whole_first, len(whole)):
        path.write_bytes(whole[:length])
        torn = loaded(tmp_path)
        assert torn.version("t") == v(1)
        assert path.stat().st_size == whole_first
        kept = await torn.add("t", entry(v(2), v(1)))
        assert (kept.taken, kept.on_disk) == (Taken.HEAD, True)
        assert path.read_bytes() == whole


async def test_a_damaged_line_costs_itself(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    for turn in (1, 2):
        await store.add("t", entry(v(turn), v(turn - 1) if turn > 1 else NOTHING))
    await store.add("t", entry(v(3), v(2), anew=True))
    [path] = files(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"version": [0, "x", 3]}\n', lines[3]]))
    assert [e.version.turn for e in loaded(tmp_path).log("t").entries] == [1, 3]
    path.write_bytes(b"\xff\xfe" + b"".join(lines))
    assert loaded(tmp_path).list() == [], "a file without our first line is left alone"
    assert path.read_bytes().startswith(b"\xff\xfe")


@pytest.mark.parametrize("what", ["deleted", "replaced", "cut", "grown"])
async def test_a_file_that_changed_under_us_is_written_anew(tmp_path: Path, what: str) -> None:
    store = loaded(tmp_path)
    await store.add("t", entry(v(1)))
    [path] = files(tmp_path)
    if what == "deleted":
        path.unlink()
    elif what == "replaced":
        path.unlink()
        path.write_text("something else\n")
    elif what == "cut":
        os.truncate(path, 10)
    else:
        with path.open("ab") as file:
            file.write(b"more")
    assert (await store.add("t", entry(v(2), v(1)))).on_disk
    assert [e.version.turn for e in loaded(tmp_path).log("t").entries] == [1, 2]


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    directory, secret = tmp_path / "topics", tmp_path / "secret"
    store = loaded(directory)
    await store.add("t", entry(v(1)))
    [path] = files(directory)
    path.unlink()
    secret.write_text("secret\n")
    path.symlink_to(secret)
    await store.add("t", entry(v(2), v(1)))
    assert secret.read_text() == "secret\n"
    assert not path.is_symlink()


async def test_a_disk_that_is_full_costs_durability_and_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = loaded(tmp_path)
    await store.add("t", entry(v(1)))
    await store.add("u", entry(v(1)))
    real, room = files_module._write, [30]

    def write(fd: int, data: bytes) -> None:
        real(fd, data[: room[0]])  # a part gets there, as it does
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files_module, "_write", write)
    for topic, turn in (("t", 2), ("t", 3), ("u", 2)):
        kept = await store.add(topic, entry(v(turn), v(turn - 1)))
        assert (kept.taken, kept.on_disk) == (Taken.HEAD, False)
    assert "No space left" in store.problem
    assert [t.version.turn for t in loaded(tmp_path).list()] == [1, 1], "the files are as they were"
    assert len(store.get("t").messages) == 6
    room[0] = 1 << 30
    assert (await store.add("t", entry(v(4), v(3)))).on_disk
    assert store.problem == ""
    after = loaded(tmp_path)
    assert [e.version.turn for e in after.log("t").entries] == [1, 2, 3, 4]
    assert [e.version.turn for e in after.log("u").entries] == [1, 2], "what waited of others is written too"


async def test_turns_side_by_side_are_all_there(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    kept = await asyncio.gather(*(store.add(f"t{i % 5}", entry(v(1, node=f"n{i}"))) for i in range(60)))
    assert all(k.on_disk for k in kept)
    again = loaded(tmp_path)
    assert sum(len(again.log(f"t{i}")) for i in range(5)) == 60


async def test_names_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "MAX_LOGS", 2)
    store = Store()
    await store.add("a", entry(v(1)))
    await store.add("b", entry(v(1)))
    with pytest.raises(Overloaded, match="topics forget"):
        await store.add("c", entry(v(1)))
    await store.add("a", entry(v(2), v(1)))


async def test_what_a_client_sends_over_and_over_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends the whole conversation each turn fills no disk; recent turns and branches stay."""
    monkeypatch.setattr(topics, "COMPACT_BYTES", 2000)
    store = loaded(tmp_path)
    await store.add("t", entry(v(1), text="begin"))
    await store.add("t", entry(v(2, node="b"), v(1), "said alone"))
    for turn in range(2, 60):
        whole = " ".join(["x"] * turn)
        await store.add("t", entry(v(turn), v(turn - 1), whole, anew=True, request_id=f"r{turn}"))
    [path] = files(tmp_path)
    assert path.stat().st_size < 12_000, "a third of what was said"
    again = loaded(tmp_path)
    for each in (store, again):
        log = each.log("t")
        assert log.head == v(59)
        assert log.branches() == [v(2, node="b")]
        assert [m.content for m in log.conversation(v(2, node="b"))] == [
            "begin",
            "yes",
            "said alone",
            "yes",
        ]
        assert each.get("t").messages[0].content == whole
        assert [e.version.turn for e in log.path()][-16:] == list(range(44, 60))
    assert store.answered("r50") is not None, "a request that is asked again has its answer"
    await again.add("t", entry(v(60), v(59), "one more"))
    assert len(loaded(tmp_path).get("t").messages) == 4


async def test_turns_that_follow_each_other_are_never_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "COMPACT_BYTES", 10)
    store = loaded(tmp_path)
    for turn in range(1, 60):
        await store.add("t", entry(v(turn), v(turn - 1) if turn > 1 else NOTHING, str(turn)))
    assert [e.version.turn for e in loaded(tmp_path).log("t").entries] == list(range(1, 60))


async def test_a_tombstone_goes_when_nobody_can_come_back_any_more(tmp_path: Path) -> None:
    now = [1e9]
    store = Store(tmp_path, clock=lambda: now[0])
    store.load()
    for name in ("old", "new"):
        await store.add(name, entry(v(1)))
    await store.add("old", Entry(v(2), v(1), forgotten=True))
    now[0] += topics.TOMBSTONE_S - 1
    await store.add("new", Entry(v(2), v(1), forgotten=True))
    assert [t.topic for t in store.list(forgotten=True)] == ["new", "old"]
    now[0] += 2
    await store.add("third", entry(v(1)))
    await store.add("third", Entry(v(2), v(1), forgotten=True))
    assert [t.topic for t in store.list(forgotten=True)] == ["new", "third"]
    assert len(files(tmp_path)) == 2
    store.close()
    os.utime(store._files.path("new"), (1, 1))  # type: ignore[union-attr]
    assert [t.topic for t in loaded(tmp_path).list(forgotten=True)] == ["third"], "after a restart by the file's age"
