"""A request from its arrival to its answer: plan, local phase, peers' ballots, vote, commit.

Every node is a coordinator for the requests of its own clients and a participant for those of others:

    stream   plan -> candidates here and on peers -> ballots into one vote -> outcome -> the topic's next version
    poll     the local phase alone, for another node's vote
    decide   the outcome of another node's vote: its topic is held here too

All candidates vote as one pool: a peer's ballots are counted, not its winner, so the popular vote is never inverted. A
ballot is made here from the candidate's text; what a peer claims of its key, weight or quality is not believed.
"""

from node.coordinator.coordinator import Coordinator
from node.coordinator.events import NO_WISHES, Counted, Event, Leads, Planned, Polled, Progressed, Voted, Wishes, Wrote

__all__ = [
    "NO_WISHES",
    "Coordinator",
    "Counted",
    "Event",
    "Leads",
    "Planned",
    "Polled",
    "Progressed",
    "Voted",
    "Wishes",
    "Wrote",
]
