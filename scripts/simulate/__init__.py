"""Many nodes in simulated time: `python scripts/simulate` with nodes of `node.core.members`, and nothing else real."""
