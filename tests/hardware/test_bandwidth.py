"""The speed of memory: what is kept of it, and what is not believed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.hardware import bandwidth
from node.hardware.bandwidth import KEPT, known_bytes_per_s, read_bytes_per_s
from node.hardware.cpu import Cpu

CPU = Cpu("a processor", 4, 8, 4.0, 16 << 30, 12 << 30, ("avx2",))


class Machine:
    """A machine that measures what it is told, at a time that it is told."""

    def __init__(self, folder: Path) -> None:
        self.environ = {"CONCLAVE_HOME": str(folder)}
        self.file = folder / "data" / KEPT
        self.now = 1e9
        self.asked: list[int] = []

    def known(self, *measured: float, cpu: Cpu = CPU, threads: int = 0, makes_folder: bool = True) -> float:
        left: Iterator[float] = iter(measured)

        def reads(threads: int) -> float:
            self.asked.append(threads)
            return next(left)

        return known_bytes_per_s(
            cpu, threads, environ=self.environ, reads=reads, now=lambda: self.now, makes_folder=makes_folder
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(bandwidth, "APART_S", 0.0)
    return Machine(tmp_path / "own")


def test_the_most_counts_over_commands(machine: Machine) -> None:
    assert machine.known(30e9, 40e9, 35e9) == 40e9
    assert machine.asked == [4] * bandwidth.ROUNDS
    assert machine.known(20e9) == 40e9
    assert machine.known(42e9) == 42e9
    machine.now += 30 * 86400
    assert machine.known(1e9) == pytest.approx(21e9)
    assert machine.known(25e9) == 25e9


def test_each_machine_and_number_of_threads_has_its_own(machine: Machine) -> None:
    assert machine.known(40e9, 40e9, 40e9) == 40e9
    assert machine.known(10e9, 10e9, 10e9, threads=1) == 10e9
    other = Cpu("another processor", 4, 8, 4.0, 16 << 30, 12 << 30, ())
    assert machine.known(5e9, 5e9, 5e9, cpu=other) == 5e9
    assert machine.known(1e9) == 40e9
    for threads in range(2, 40):
        machine.known(9e9, 9e9, 9e9, threads=threads)
    assert len(json.loads(machine.file.read_text())) == bandwidth.MOST_KEPT


def test_to_look_makes_no_folder(machine: Machine) -> None:
    assert machine.known(30e9, 40e9, 35e9, makes_folder=False) == 40e9
    assert not machine.file.parent.exists()
    machine.file.parent.mkdir(parents=True)
    assert machine.known(30e9, 40e9, 35e9, makes_folder=False) == 40e9
    assert machine.known(1e9) == 40e9


@pytest.mark.parametrize("text", [
    "", "nonsense", "[]", "{}", '{"a": 1}', "[" * 9000, "\udcff", '{"KEY": {"value": 1e400, "at": 0}}',
    '{"KEY": {"value": NaN, "at": 1}}', '{"KEY": {"value": -1, "at": 0}}', '{"KEY": {"value": [], "at": 0}}',
    '{"KEY": {"value": 5e9, "at": Infinity}}',
])  # fmt: skip
def test_a_file_that_is_broken_is_as_none(machine: Machine, text: str) -> None:
    machine.known(1e9, 1e9, 1e9)
    [key] = json.loads(machine.file.read_text())
    machine.file.write_text(text.replace("KEY", key), errors="surrogateescape")
    assert machine.known(20e9, 30e9, 25e9) == 30e9
    assert machine.known(1e9) == 30e9


def test_what_cannot_be_kept_or_measured(machine: Machine) -> None:
    assert machine.known(0.0, 0.0, 0.0) == 0.0
    assert not machine.file.exists()
    machine.file.parent.parent.mkdir()
    machine.file.parent.write_text("a file where the folder should be")
    assert machine.known(20e9, 30e9, 25e9) == 30e9


def test_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "PASSES", 2)
    assert 0 < read_bytes_per_s(1) < bandwidth._MOST_BYTES_PER_S
