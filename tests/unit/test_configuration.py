"""What a node is told: precedence, derived addresses, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.nodes.configuration import (
    ConfigurationError,
    NodeConfiguration,
    Peer,
)

THREE = "node1=127.0.0.1:7001,node2=127.0.0.1:7002,node3=127.0.0.1:7003"


def configured(environ: dict[str, str] | None = None, /, **flags: str) -> NodeConfiguration:
    return NodeConfiguration.from_options(environ or {}, **flags)


def test_nothing_given_is_one_node_on_loopback() -> None:
    node = configured()
    assert node.name == "node1"
    assert node.data_dir == Path("coterie-data/node1")
    assert node.client_bind == "tcp://127.0.0.1:7001"
    assert node.peer_bind == "tcp://127.0.0.1:7101"
    assert node.publish_bind == "tcp://127.0.0.1:7201"
    assert node.advertised_endpoint == node.client_bind
    assert node.peers == (Peer("node1", node.client_bind, node.peer_bind, node.publish_bind),)
    assert node.own == node.peers[0]
    assert node.durability == "fsync"
    assert node.election_timeout_s == (0.150, 0.300)
    assert node.heartbeat_s == 0.050
    assert not node.insecure
    assert node.keys is None
    assert node.log_level == "info"
    assert node.parent_pipe is None


def test_peers_are_sorted_and_their_ports_derived() -> None:
    node = configured(peers="b=127.0.0.1:7002, a=[::1]:7001:9001 ,c=tcp://host:1:2:3", name="b")
    assert node.peers == (
        Peer("a", "tcp://[::1]:7001", "tcp://[::1]:9001", "tcp://[::1]:7201"),
        Peer("b", "tcp://127.0.0.1:7002", "tcp://127.0.0.1:7102", "tcp://127.0.0.1:7202"),
        Peer("c", "tcp://host:1", "tcp://host:2", "tcp://host:3"),
    )
    assert [member.node for member in node.members] == ["a", "b", "c"]
    assert all(member.voter and member.incarnation == 0 for member in node.members)


def test_a_flag_goes_before_the_environment_and_that_before_the_default() -> None:
    environ = {"COTERIE_DURABILITY": "relaxed", "COTERIE_ELECTION_TIMEOUT": "200-500"}
    assert configured(environ).durability == "relaxed"
    assert configured(environ).election_timeout_s == (0.2, 0.5)
    assert configured(environ, durability="fsync").durability == "fsync"
    assert configured({"COTERIE_DURABILITY": ""}).durability == "fsync"


def test_bind_and_advertise() -> None:
    node = configured(peers=THREE, name="node2", bind="0.0.0.0", insecure="yes")
    assert node.client_bind == "tcp://0.0.0.0:7002"
    assert node.publish_bind == "tcp://0.0.0.0:7202"
    assert node.advertised_endpoint == "tcp://127.0.0.1:7002"
    assert node.insecure
    node = configured(bind="localhost:8000:8001", advertise="localhost:9000")
    assert node.client_bind == "tcp://127.0.0.1:8000"
    assert node.peer_bind == "tcp://127.0.0.1:8001"
    assert node.publish_bind == "tcp://127.0.0.1:8200"
    assert node.advertised_endpoint == "tcp://localhost:9000"
    assert node.members[0].client_endpoint == "tcp://localhost:9000"
    assert node.own.client_endpoint == "tcp://127.0.0.1:7001"


def test_a_host_name_among_the_peers_needs_an_address_to_listen_on() -> None:
    peers = "node1=db1.example:7001"
    with pytest.raises(ConfigurationError, match=r"^--bind: .*--bind 0\.0\.0\.0"):
        configured(peers=peers)
    assert configured(peers=peers, bind="127.0.0.1").advertised_endpoint == "tcp://db1.example:7001"


@pytest.mark.parametrize("bind", ["0.0.0.0", "*", "192.0.2.1:7001", "[::]"])
def test_others_than_loopback_need_insecure(bind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--bind: .*loopback.*--insecure"):
        configured(bind=bind)
    assert configured(bind=bind, insecure="yes").insecure


WRONG = [
    ({"name": "no de"}, "--name", "letters"),
    ({"name": "n9", "peers": "n1=h:1"}, "--name", "none of the configured nodes (n1)"),
    ({"peers": "127.0.0.1:7001"}, "--peers", "NAME=HOST:PORT"),
    ({"peers": "node1=127.0.0.1"}, "--peers", "HOST:PORT"),
    ({"peers": "node1=*:7001"}, "--peers", "HOST:PORT"),
    ({"peers": "node1=127.0.0.1:70010"}, "--peers", "65535"),
    ({"peers": "node1=127.0.0.1:65500"}, "--peers", "65600"),
    ({"peers": "node1=127.0.0.1:1,node1=127.0.0.1:2"}, "--peers", "twice"),
    ({"peers": "node1=127.0.0.1:7001,node2=127.0.0.1:7101"}, "--peers", "used twice"),
    ({"peers": " , "}, "--peers", "no node"),
    ({"peers": ",".join(f"n{i}=h{i}:1" for i in range(65)), "name": "n1"}, "--peers", "at most 64"),
    ({"bind": "127.0.0.1:x"}, "--bind", "HOST"),
    ({"bind": "eth0"}, "--bind", "addresses"),
    ({"advertise": "0.0.0.0:7001"}, "--advertise", "reach this node"),
    ({"advertise": "node1"}, "--advertise", "reach this node"),
    ({"durability": "lazy"}, "--durability", "fsync"),
    ({"election_timeout": "150"}, "--election-timeout", "150-300"),
    ({"election_timeout": "300-150"}, "--election-timeout", "greater"),
    ({"election_timeout": "nan-300"}, "--election-timeout", "milliseconds"),
    ({"heartbeat": "0"}, "--heartbeat", "milliseconds"),
    ({"heartbeat": "100"}, "--heartbeat", "150 ms"),
    ({"insecure": "maybe"}, "--insecure", "yes nor no"),
    ({"segment_bytes": "1k"}, "--segment-bytes", "bytes"),
    ({"segment_bytes": "10"}, "--segment-bytes", "within"),
    ({"keys": "keys.toml"}, "--keys", "not there yet"),
    ({"log_level": "loud"}, "--log-level", "debug"),
    ({"parent_pipe": "-1"}, "--parent-pipe", "descriptor"),
    ({"data": "a\0b"}, "--data", "path"),
]


@pytest.mark.parametrize(("flags", "flag", "text"), WRONG)
def test_a_wrong_flag_is_named_with_its_value(flags: dict[str, str], flag: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(**flags)
    line = str(caught.value)
    assert line.startswith(f"{flag}: ")
    assert text in line
    assert "\n" not in line
    assert caught.value.value == flags[caught.value.setting.strip("-").replace("-", "_")]


@pytest.mark.parametrize(("flags", "flag", "text"), WRONG)
def test_a_wrong_variable_is_named_with_its_value(
    flags: dict[str, str], flag: str, text: str
) -> None:
    environ = {f"COTERIE_{setting.upper()}": value for setting, value in flags.items()}
    with pytest.raises(ConfigurationError) as caught:
        configured(environ)
    assert caught.value.setting == "COTERIE_" + flag.strip("-").replace("-", "_").upper()
    assert text in str(caught.value)


def test_http_is_served_beside_the_clients_unless_told() -> None:
    node = configured()
    assert (node.http_listen, node.http_port, node.http_token) == ("127.0.0.1", 8001, "")
    assert configured(peers="node1=127.0.0.1:65000").http_port == 0, "there is no such port"
    assert configured(http_port="0").http_port == 0
    lifted = configured(bind="0.0.0.0", insecure="yes", peers="node1=n1.example:7001")
    assert (lifted.http_listen, lifted.http_port) == ("0.0.0.0", 8001)
    assert lifted.http_hosts == {"n1.example"}
    named = configured(http_hosts="Locks.example, other", advertise="10.0.0.1:7001")
    assert named.http_hosts == {"locks.example", "other", "10.0.0.1", "127.0.0.1"}


def test_http_for_others_needs_a_token_or_insecure() -> None:
    with pytest.raises(ConfigurationError, match=r"--http-listen.*--http-token.*--insecure"):
        configured(http_listen="0.0.0.0")
    token = "0123456789abcdef"
    assert configured({"COTERIE_HTTP_TOKEN": token}, http_listen="0.0.0.0").http_token == token
    assert configured(http_listen="0.0.0.0", insecure="yes").http_token == ""


def test_a_token_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured({"COTERIE_HTTP_TOKEN": "too short"})
    assert "COTERIE_HTTP_TOKEN" in str(caught.value) and "too short" not in str(caught.value)
    assert "0123456789abcdef" not in repr(configured(http_token="0123456789abcdef"))


@pytest.mark.parametrize(
    "flags",
    [{"http_port": "65536"}, {"http_port": "x"}, {"http_listen": "a b"}, {"http_hosts": "a b"},
     {"http_listen": "tcp://127.0.0.1"}],
)  # fmt: skip
def test_wrong_settings_of_http_are_refused(flags: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        configured(**flags)
