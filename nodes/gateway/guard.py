"""Who may ask: the checks on a request's Host, Origin and token. Pure.

The law: a web page of somebody else must not be able to command a node through a visitor's
browser, by whatever method. A page reaches us under a name of its own (DNS rebinding), so names
are taken only from a list; and a browser tells where a page is from, so a foreign Origin is
refused. (Ray CVE-2026-27482, etcd CVE-2018-1098: there one method went unchecked.)
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection, Sequence

from .failures import Refusal

BEARER = "bearer"


def host_of(authority: str) -> str:
    """The host in HOST[:PORT], lower case, without brackets; "" if that is none."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return ""
        return host.lower()
    host, colon, port = authority.partition(":")
    if colon and not _is_port(colon + port):
        return ""
    return host.lower().removesuffix(".")


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def host_is_good(authority: str, names: Collection[str]) -> bool:
    """True for an address (no name of somebody else's leads there), localhost, or a known name."""
    host = host_of(authority)
    if host == "localhost" or host in names:
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def check_origin(hosts: Sequence[str], origins: Sequence[str], names: Collection[str]) -> None:
    """Refuse a foreign or missing Host, and any Origin but the Host's own. Raises `Refusal`."""
    if len(hosts) != 1 or not host_is_good(hosts[0], names):
        text = "this Host is not known; use an address, localhost, or a name given by --http-hosts"
        raise Refusal(403, "PermissionDenied", text)
    for origin in origins:
        scheme, _, authority = origin.partition("://")
        if scheme not in ("http", "https") or authority.lower() != hosts[0].lower():
            raise Refusal(403, "PermissionDenied", "a page of another origin may not ask this node")


def check_token(authorizations: Sequence[str], token: str) -> None:
    """Refuse whoever does not bear the token. Takes the same time for any wrong one.

    Raises `Refusal`."""
    scheme, _, given = (authorizations[0] if len(authorizations) == 1 else "").partition(" ")
    given = given.strip() if scheme.lower() == BEARER else ""
    if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        text = "send the node's token: 'Authorization: Bearer …' (--http-token, COTERIE_HTTP_TOKEN)"
        raise Refusal(401, "PermissionDenied", text, {"WWW-Authenticate": "Bearer"})
