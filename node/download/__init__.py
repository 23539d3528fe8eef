"""Models from peers: who of the mesh has one, and bringing it here from all of them at once.

search     the nodes, and what they have
offers     which of it a name means
download   the pieces, from all at once
pull       these together
"""

from node.download.download import Arrived, fetch
from node.download.offers import Choice, choose
from node.download.pull import NotTheHubs, pull
from node.download.search import Has, search

__all__ = ["Arrived", "Choice", "Has", "NotTheHubs", "choose", "fetch", "pull", "search"]
