"""The KV of an answer that a peer's candidate gave: computed here when nobody waits, so that the next turn finds it.

Without that, every second turn of two nodes' votes would begin with computing the last answer. The job has no topic, so
that what is held for the topic stays where it is meanwhile, and a turn that begins in that time goes on from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence

from node.coordinator.place import Place
from node.engine import scheduler
from node.errors import ConclaveError
from node.types import SamplingParams, Tool, Version

log = logging.getLogger(__name__)

# A client that asks again at once is not to be held up by this.
LATER_S = 0.3


async def compute(
    place: Place, topic: str, version: Version, tools: Sequence[Tool], is_busy: Callable[[str], bool]
) -> None:
    """Compute a topic's conversation as of a version and keep its KV for the topic, unless the topic goes on."""
    engine = place.local.engine

    def is_over() -> bool:
        return place.store.version(topic) != version or is_busy(topic)

    await asyncio.sleep(LATER_S)
    if engine.sample is None or is_over():
        return
    try:
        prompt = await engine.prompt(place.store.get(topic).messages, tools, is_raw=False)
        id = f"{place.id}/late/{secrets.token_hex(4)}"
        job = scheduler.job(id, prompt, [1], SamplingParams(max_tokens=1), 0)
        async with contextlib.aclosing(engine.run(job)) as events:
            async for _ in events:
                pass
    except ConclaveError as e:
        log.info("the KV of an answer of a peer's was not computed: %s", e)
        return
    if is_over():
        engine.commit(id)
        return
    engine.commit(id, topic=topic)
    if place.replicator is not None:
        place.replicator.changed(topic)
