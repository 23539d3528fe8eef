"""The only place where objects are made, and the order in which they start and stop."""

from node.app.node import Node
from node.app.summary import Summary

__all__ = ["Node", "Summary"]
