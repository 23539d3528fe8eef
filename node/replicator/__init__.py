"""A conversation outlives its machine: its log is on another node before a turn is answered, its KV follows.

rates       what links and codecs were measured to do; the cap on replication
turns       logs: to peers before a turn is answered, from peers before a turn begins, and when nodes meet again
snapshots   KV: taken from the engine, kept on disk, checked, and given back to the engine
incoming    a snapshot on its way into the engine, put together as its blocks come
receiver    a snapshot on its way in, part by part
transfer    snapshots between nodes: offered, pushed, pulled; resumed where they broke off
links       how quick the links to other nodes are
pulls       KV that a turn waits for, from another node
travels     which snapshots went lately, for people to watch
replicator  all of it for the coordinator and the listeners

The log is the truth, KV a cache of it: whatever happens to a snapshot costs time, never an answer.
"""

from node.replicator.replicator import Options, Replicator
from node.replicator.travels import Travel, Travels
from node.replicator.turns import Peers

__all__ = ["Options", "Peers", "Replicator", "Travel", "Travels"]
