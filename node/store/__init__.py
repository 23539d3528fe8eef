"""What a node keeps: the logs of topics, the blocks of their KV, and the record of models.

records    an entry of a log as a line of JSON, and back
files      logs as files: appended with fsync, torn tails healed
topics     the topics held, in memory and on disk
blocks     snapshots on disk, within a budget
standings  the record of each model, by the votes it took part in
"""

from node.store.blocks import Blocks
from node.store.standings import Standings
from node.store.topics import Kept, Store, Topic

__all__ = ["Blocks", "Kept", "Standings", "Store", "Topic"]
