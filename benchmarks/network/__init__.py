"""Hosts on a network of their own, within this machine, whose links are as slow as one likes.

`Network` makes them from Linux network namespaces; ``python -m benchmarks.network`` runs one
command on them.
"""

from benchmarks.network.network import Network
from benchmarks.network.tools import NetworkError

__all__ = ["Network", "NetworkError"]
