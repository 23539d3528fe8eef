"""Conclave: a swarm of local language models that vote."""

__version__ = "0.1.0"
