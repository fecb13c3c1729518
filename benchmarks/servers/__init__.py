"""The servers that are measured against each other, one module each. Each runs in fresh processes,
one at a time.
"""

from benchmarks.servers import fastapi, litserve, touchstone
from benchmarks.servers.server import Running, Server, running

SERVERS: dict[str, Server] = {
    server.name: server
    for server in (*touchstone.OURS, *litserve.LITSERVES, fastapi.FASTAPI, *touchstone.BEFORES)
}

__all__ = ["SERVERS", "Running", "Server", "running"]
