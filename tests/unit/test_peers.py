"""To whom a node is connected, as its cluster changes."""

from __future__ import annotations

from coterie.nodes.peers import TOLD_MAX, PeerLinks
from coterie.protocols.records import Configuration, Member


class Sockets:
    def __init__(self) -> None:
        self.linked: dict[str, tuple[str, str]] = {}

    def connect_peer(self, node: str, peers: str, publish: str) -> None:
        self.linked[node] = (peers, publish)

    def disconnect_peer(self, node: str) -> None:
        del self.linked[node]


def member(node: str, where: str = "") -> Member:
    return Member(node, 1, True, "", where and f"{where}/peers", where and f"{where}/pub")


def test_it_follows_the_configuration_and_keeps_its_settings() -> None:
    sockets = Sockets()
    links = PeerLinks(sockets, "a", [member("a", "A"), member("b", "B")])
    assert sockets.linked == {"b": ("B/peers", "B/pub")}
    links.follow(None)
    links.follow(Configuration(7, (member("a", "A"), member("b", "B2"), member("c", "C"))))
    assert sockets.linked == {"b": ("B2/peers", "B2/pub"), "c": ("C/peers", "C/pub")}
    links.follow(Configuration(7, (member("a", "A"), member("c"))))
    assert sockets.linked == {"b": ("B/peers", "B/pub")}, "no endpoint is known of c any more"


def test_who_was_removed_stays_connected_for_a_while() -> None:
    sockets = Sockets()
    links = PeerLinks(sockets, "a", [member("a", "A")])
    links.follow(Configuration(7, (member("a"), member("b", "B"))))
    links.follow(Configuration(7, (member("a"),), (), (("b", 1),)))
    assert list(sockets.linked) == ["b"]
    later = tuple((f"n{number}", 1) for number in range(TOLD_MAX))
    links.follow(Configuration(7, (member("a"),), (), (("b", 1), *later)))
    assert not sockets.linked
