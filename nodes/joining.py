"""`coterie node --join`: how a new node gets into a cluster that runs.

The law: a node that is told to join founds nothing. It has itself added and asks who the others are
before it starts; what it heard is kept beside its data, so that it starts again whether or not
anybody answers then. Who belonged to a cluster once is not added again: it may have been removed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .administration import Administration
from .configuration import parse_address
from .identity import FILE as IDENTITY

PEERS_FILE = "peers"


def kept_peers(directory: Path) -> str | None:
    """The `--peers` kept beside the data of a node that has joined; None if it has not."""
    try:
        content = json.loads((directory / IDENTITY).read_text(encoding="utf-8"))
        if int(content["cluster"], 16):
            return (directory / PEERS_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError):
        pass  # whatever is wrong with it, the node's own start says it
    return None


def join_cluster(cluster: Administration, name: str, address: str, directory: Path) -> str:
    """Add a node and keep the `--peers` it starts with, itself included.

    `address` is HOST:PORT[:PEERS[:PUB]] by which the others reach it. Raises what `Administration`
    raises, ValueError for an address that is none, OSError."""
    own = parse_address(address)
    cluster.add(name, *own)
    members = {
        row.node: (row.client_endpoint, row.peer_endpoint, row.publish_endpoint)
        for row in cluster.members()
    }
    members[name] = own
    peers = ",".join(f"{node}={_address(*where)}" for node, where in sorted(members.items()))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = directory / f".{PEERS_FILE}.new"
    temporary.write_text(peers, encoding="utf-8")
    os.replace(temporary, directory / PEERS_FILE)
    return peers


def _address(client: str, peer: str, publish: str) -> str:
    ports = ":".join(endpoint.rpartition(":")[2] for endpoint in (peer, publish))
    return f"{client.removeprefix('tcp://')}:{ports}"
