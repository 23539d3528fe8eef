"""Why a port is not to be had."""

from dataclasses import replace

from node.app.ports import _whose
from node.mesh.local import RunningNode


def test_a_port_of_a_node_of_this_machine_is_said_to_be_that() -> None:
    node = RunningNode("a" * 10, 71, "feedfeed", "10.0.0.7:7421", "127.0.0.1:7420", 0.0, "127.0.0.1:7422")
    for port, use in ((7420, "clients"), (7421, "other nodes"), (7422, "HTTP")):
        said = f"is taken by node aaaaaaaaaa of this machine, which runs as process 71 (its port for {use})"
        assert _whose(port, [node]) == said
    assert "by node vm (aaaaaaaaaa) of" in _whose(7420, [replace(node, name="vm")])
    assert _whose(742, [node]) == _whose(7420, []) == "is taken by another program"
