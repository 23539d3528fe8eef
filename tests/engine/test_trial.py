"""The first load of a file says how far it is; the second does not take place."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.engine import trial
from node.engine.llamacpp import LlamaOptions
from node.errors import BackendError
from node.models.resolve import BUNDLED


async def test_a_trial_says_how_far_it_is(tmp_path: Path) -> None:
    options = LlamaOptions(BUNDLED, "demo", "fp", sequences=1, context=128, threads=1)
    told: list[float] = []
    await trial.ensure(options, tmp_path, "1", told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    told.clear()
    await trial.ensure(options, tmp_path, "1", told.append)
    assert told == [], "what worked is not tried again"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(BUNDLED.read_bytes()[:5000])
    with pytest.raises(BackendError, match=r"broken\.gguf could not be loaded"):
        await trial.ensure(LlamaOptions(broken, "broken", "fp", sequences=1), tmp_path, "1", told.append)
    assert told == []
