"""From the secret id of an HTTP session to the client that the cluster knows it as. Pure.

The law: the id is derived from, never looked up: so any node answers for any session, without a
table that could be lost with a node. An id has 128 bits. The cluster's `client` is 64 bits of its
hash: whoever reads the cluster's frames or disks learns the client, and not the id.

With an Idempotency-Key the id is derived from the key (and the node's token), so that the same
request gives the same session, at whichever node it is repeated.
"""

from __future__ import annotations

import re
from hashlib import blake2b

ID_BYTES = 16
ID = re.compile(r"[0-9a-f]{32}")


def client_of(session: str) -> int:
    """The client behind a session id; 0 for what is no such id."""
    if not ID.fullmatch(session):
        return 0
    digest = blake2b(bytes.fromhex(session), digest_size=8, person=b"coterie-client").digest()
    return int.from_bytes(digest, "big") or 1


def from_key(key: str, path: str, secret: str) -> str:
    """The session id for an Idempotency-Key sent to a path. `secret`: the nodes' token, or ""."""
    secret_key = blake2b(secret.encode(), digest_size=32).digest()
    text = f"{path}\0{key}".encode("utf-8", "surrogateescape")
    return blake2b(
        text, digest_size=ID_BYTES, key=secret_key, person=b"coterie-session"
    ).hexdigest()
