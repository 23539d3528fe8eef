"""What a node keeps: the logs of topics, and the blocks of their KV.

records   an entry of a log as a line of JSON, and back
files     logs as files: appended with fsync, torn tails healed
topics    the topics held, in memory and on disk
blocks    snapshots on disk, within a budget
"""

from node.store.blocks import Blocks
from node.store.topics import Kept, Store, Topic

__all__ = ["Blocks", "Kept", "Store", "Topic"]
