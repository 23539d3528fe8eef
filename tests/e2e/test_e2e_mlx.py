"""A node on MLX, as a process: it answers, votes with another one of the same model, and says what it lacks."""

import sys
from pathlib import Path

import pytest
from swarm import Swarm, together

pytest.importorskip("mlx.core", reason="MLX is not installed: pip install -e '.[mlx]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import tinymlx

from node.v1 import types_pb2


def test_two_nodes_on_mlx_vote(own: Swarm, tmp_path: Path) -> None:
    model = tinymlx.make(tmp_path / "tiny", tinymlx.QWEN)
    nodes = [own.start("--backend", backend, "--model", str(model), "--slots", "4") for backend in ("mlx", "auto")]
    own.ready(*nodes)
    together(*nodes)
    params = types_pb2.SamplingParams(max_tokens=12, temperature=0.0)
    answer = nodes[0].client.ask("Count.", candidates=8, params=params)
    assert {c.node for c in answer.candidates} <= {n.id for n in nodes}
    assert answer.outcome.finished >= 4
    assert {n.backend for n in nodes[1].client.status().nodes} == {"mlx"}
    done = own.run("--backend", "mlx", "--model", "nowhere", "--join", "none")
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert "MLX takes the directory of a model" in done.err
