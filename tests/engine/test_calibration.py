"""The first figures of a machine: right, within their time, and given up when somebody wants something."""

from collections.abc import Sequence
from typing import Any

import pytest

from node.core import meaning
from node.core.slots import Speeds, worth_from
from node.engine import calibration
from node.engine.backend import Row
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.models.resolve import BUNDLED


class Machine(FakeBackend):
    """A backend with a clock of its own: seconds a step, a prompt's row, a restore and its byte."""

    def __init__(
        self, step_s: float = 0.01, row_s: float = 0.001, restore_s: float = 0.002, byte_s: float = 1e-7
    ) -> None:
        super().__init__(FakeSpec(), sequences=4)
        self.now = 0.0
        self._costs = step_s, row_s, restore_s, byte_s

    def clock(self) -> float:
        return self.now

    def decode(self, rows: Sequence[Row]) -> None:
        super().decode(rows)
        self.now += self._costs[0] + self._costs[1] * len(rows)

    def restore(self, sequence: int, state: Any) -> bool:
        self.now += self._costs[2] + self._costs[3] * state.nbytes
        return super().restore(sequence, state)


def test_what_is_measured_is_what_it_is() -> None:
    machine = Machine()
    found = calibration.measure(machine, clock=machine.clock)
    assert found.steps == pytest.approx([0.014] * 12)
    assert found.kv_bytes == 16
    assert found.speeds is not None
    assert found.speeds.is_measured
    assert found.speeds.prefill_s == pytest.approx((0.01 + 0.128) / 128)
    assert found.speeds.restore_s == pytest.approx(0.002)
    assert found.speeds.restore_s_per_byte == pytest.approx(1e-7)
    assert machine.used_sequences == 0
    assert machine.now < 0.6


@pytest.mark.parametrize("step_s", [0.001, 0.03, 0.2, 0.7, 3.0])
def test_it_keeps_to_its_time(step_s: float) -> None:
    machine = Machine(step_s=step_s, row_s=step_s / 8)
    found = calibration.measure(machine, clock=machine.clock)
    # One step cannot be cut short; everything after it is estimated before it is begun.
    assert machine.now <= calibration.LIMIT_S + 1.5 * step_s
    assert found.steps
    assert (found.speeds is not None) == (step_s < 0.5)
    assert machine.used_sequences == 0


@pytest.mark.parametrize("looks", range(5))
def test_who_wants_something_ends_it(looks: int) -> None:
    machine, asked = Machine(), 0

    def is_wanted() -> bool:
        nonlocal asked
        asked += 1
        return asked <= looks

    found = calibration.measure(machine, is_wanted, machine.clock)
    assert found.speeds is None
    assert machine.now <= 0.014 * (looks + 1) + 1e-9
    assert machine.used_sequences == 0


async def test_the_engine_begins_with_them() -> None:
    engine = Engine(lambda: LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=4, context=512, threads=1)))
    await engine.start()
    try:
        assert engine.speeds.is_measured
        assert 1e-6 < engine.speeds.prefill_s < 1e-1
        assert engine.speeds.restore_s_per_byte != Speeds().restore_s_per_byte
        assert engine.kv_bytes == pytest.approx(4 * 2 * 128 * 2, rel=0.6), (
            "four layers of K and V in f16, or fewer heads"
        )
        assert (await engine.held("t"))[1] == engine.speeds
        assert engine.free_sequences == 4
    finally:
        await engine.close()


def test_from_which_length_on_a_restore_pays() -> None:
    speeds = Speeds(prefill_s=1e-3, restore_s=4.5e-3, restore_s_per_byte=1e-8, is_measured=True)
    assert worth_from(speeds, 10_000) == 6, "0.9 ms a token are saved"
    assert worth_from(speeds, 10_000, 4e-8) == 10
    assert worth_from(speeds, 10_000, 1e-7) == 0, "the link is slower than the processor"
    assert worth_from(speeds, 0) == 0


def test_what_it_means() -> None:
    speeds = Speeds(prefill_s=1e-3, restore_s=4.5e-3, restore_s_per_byte=1e-8, is_measured=True)
    said = meaning.topics(speeds, 10_000, 1 << 30, 1 << 32, 8192)
    assert said == (
        "room for 52 topics of 2,048 tokens in memory, 209 more on disk; "
        "bringing one of 6 tokens or more back is quicker than computing it again"
    )
    assert meaning.topics(speeds, 10_000, 1 << 30, 0, 1024).startswith(
        "room for 209 topics of 512 tokens in memory; bring"
    )
    assert meaning.topics(speeds, 10_000, 0, 1 << 32, 1024).startswith("no room for idle ones; bring")
    assert meaning.topics(speeds, 1e9, 1 << 30, 0, 8192).endswith(
        "computing one again is quicker than bringing it back"
    )
    assert meaning.topics(Speeds(), 10_000, 1 << 30, 0, 8192) == ""
    assert meaning.topics(speeds, 0, 1 << 30, 0, 8192) == ""
