"""The table of peers: what each is, how it runs at its best, what it does differently, and how far it may be off."""

from tests.benchmarks.peers.against import Against, Bound, Peer
from tests.benchmarks.peers.compilers import TORCH_PEERS
from tests.benchmarks.peers.engines import ENGINE_PEERS
from tests.benchmarks.peers.libraries import LIBRARY_PEERS

__all__ = ["PEERS", "Against", "Bound", "Peer"]

PEERS = [*TORCH_PEERS, *LIBRARY_PEERS, *ENGINE_PEERS]
