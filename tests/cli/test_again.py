"""When a node that lost a part of its model starts again, and that it is the same command then."""

import os
import subprocess
import sys
import textwrap

import pytest

from node.cli import again


@pytest.mark.parametrize(
    ("said", "expected"), [("", 0), ("3", 3), ("-1", 0), ("x", 0), ("999", 0), ("٣", 0), ("1.5", 0)]
)
def test_what_the_process_before_said(said: str, expected: int) -> None:
    assert again.losses({again.VARIABLE: said}) == expected
    assert again.losses({}) == 0


def test_losses_in_a_row() -> None:
    """One that comes after a time of service is the first of its row."""
    assert again.counted(0, 0.0) == 1
    assert again.counted(3, again.STEADY_S - 1) == 4
    assert again.counted(3, again.STEADY_S) == 1


def test_pauses_grow() -> None:
    assert [again.pause_s(n) for n in range(1, 7)] == [0.0, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_the_same_command_with_new_files() -> None:
    """The process stays, its arguments too; what it had open is closed, even what would be inherited."""
    program = textwrap.dedent(
        """
        import os, sys, threading, time
        from node.cli import again
        count = again.losses(os.environ)
        names = sorted(int(n) for n in os.listdir("/dev/fd"))
        print(count, os.getpid(), len(names), sys.argv[1:], flush=True)
        if count < 2:
            for _ in range(5):
                os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)
            threading.Thread(target=time.sleep, args=(60,)).start()  # native code that never comes back
            again.start(count + 1)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--name", "a b"], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["0", "1", "2"]
    assert len({(pid, files) for _, pid, files, _ in lines}) == 1
    assert {arguments for *_, arguments in lines} == {"['--name', 'a b']"}
    assert again.VARIABLE not in os.environ
