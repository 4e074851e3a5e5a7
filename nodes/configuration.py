"""What a node is told when it starts: flags, else `COTERIE_*` variables, else defaults.

The law: a wrong value is refused before anything is opened, by one line that names the flag or
the variable it came from, the value, and what would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar, cast

from ..bus.loop_socket import is_loopback
from ..protocols.records import Member

Durability: TypeAlias = Literal["fsync", "relaxed"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["logfmt", "json"]
Detection: TypeAlias = Literal["both", "enqueue", "sweep"]
T = TypeVar("T")

PORT = 7001
PEER_OFFSET, PUBLISH_OFFSET = 100, 200
"""Where the ports for peers and PUB are, seen from the port for clients."""

HTTP_OFFSET = 1000

NODES_MAX = 64
MEBIBYTE = 1024 * 1024
SEGMENT_BYTES = 16 * MEBIBYTE
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = MEBIBYTE, 1024 * MEBIBYTE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = r"(?:tcp://)?(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._*-]+)"
_PORTS = r":(?P<client>\d{1,5})(?::(?P<peer>\d{1,5})(?::(?P<publish>\d{1,5}))?)?"
_ADDRESS = re.compile(_HOST + _PORTS)
_BIND = re.compile(_HOST + f"(?:{_PORTS})?")


class ConfigurationError(ValueError):
    """A setting is wrong. `setting` is the flag or variable; the command line exits 64."""

    def __init__(self, setting: str, value: str | None, text: str) -> None:
        given = "" if value is None else f" {value!r}:"
        super().__init__(f"{setting}:{given} {text}")
        self.setting = setting
        self.value = value


class ConfigurationSecret(ValueError):
    """A setting is wrong that must not be repeated to a terminal or a log."""


class Peer(NamedTuple):
    """A configured node and where the others reach it (ZeroMQ endpoints)."""

    name: str
    client_endpoint: str
    peer_endpoint: str
    publish_endpoint: str


@dataclass(frozen=True, kw_only=True)
class NodeConfiguration:
    """Everything one node is told. Endpoints are `tcp://host:port`; times are seconds.

    `peers` are all configured nodes, this one included, sorted by name. `client_bind`,
    `peer_bind` and `publish_bind` are what it listens on; `advertised_endpoint` is where clients
    are told to reach it. `election_timeout_s` is (least, most). `parent_pipe` is an inherited
    descriptor: the node ends when its other end is closed. `keys` is None: they come later.
    `http_port` is 0 if HTTP is not served; `http_hosts` are names a browser may know it by.
    """

    name: str
    data_dir: Path
    client_bind: str
    peer_bind: str
    publish_bind: str
    advertised_endpoint: str
    peers: tuple[Peer, ...]
    durability: Durability = "fsync"
    election_timeout_s: tuple[float, float] = (0.150, 0.300)
    heartbeat_s: float = 0.050
    insecure: bool = False
    segment_bytes: int = SEGMENT_BYTES
    keys: None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "logfmt"
    deadlock_detection: Detection = "both"
    parent_pipe: int | None = None
    http_listen: str = "127.0.0.1"
    http_port: int = 0
    http_token: str = field(default="", repr=False)
    http_hosts: frozenset[str] = frozenset()

    @property
    def own(self) -> Peer:
        """This node among the peers."""
        return next(peer for peer in self.peers if peer.name == self.name)

    @property
    def members(self) -> tuple[Member, ...]:
        """The peers as voters not heard of yet; of this node with its advertised endpoint."""
        return tuple(
            Member(
                peer.name,
                0,
                True,
                self.advertised_endpoint if peer.name == self.name else peer.client_endpoint,
                peer.peer_endpoint,
                peer.publish_endpoint,
            )
            for peer in self.peers
        )

    @classmethod
    def from_options(
        cls,
        environ: Mapping[str, str],
        *,
        name: str | None = None,
        data: str | None = None,
        peers: str | None = None,
        bind: str | None = None,
        advertise: str | None = None,
        durability: str | None = None,
        election_timeout: str | None = None,
        heartbeat: str | None = None,
        insecure: str | None = None,
        segment_bytes: str | None = None,
        keys: str | None = None,
        log_level: str | None = None,
        log_format: str | None = None,
        deadlock_detection: str | None = None,
        parent_pipe: str | None = None,
        http_listen: str | None = None,
        http_port: str | None = None,
        http_token: str | None = None,
        http_hosts: str | None = None,
    ) -> NodeConfiguration:
        """Flags as given (None: not given), else the environment, else the defaults.

        Raises `ConfigurationError`."""
        options = _Options(environ)
        node = options.read("name", name, parse_name, "node1")
        default_peers = f"{node}=127.0.0.1:7001"
        configured = options.read("peers", peers, _peers, default_peers)
        own = next((peer for peer in configured if peer.name == node), None)
        if own is None:
            known = ", ".join(peer.name for peer in configured)
            raise options.wrong("name", name, f"is none of the configured nodes ({known})")
        lifted = options.read("insecure", insecure, _flag, "no")
        binds = options.read("bind", bind, lambda text: _bind(text, own), _own_bind(own))
        for endpoint in binds:
            if not lifted and not is_loopback(endpoint):
                text = f"{endpoint} is not a loopback address, so anybody who reaches it could "
                raise options.wrong("bind", bind, text + "command the node; accept with --insecure")
        timeout = options.read("election_timeout", election_timeout, _range_ms, "150-300")
        beat = options.read("heartbeat", heartbeat, _milliseconds, "50")
        if beat * 2 > timeout[0]:
            text = "must be at most half the shortest election timeout"
            raise options.wrong("heartbeat", heartbeat, f"{text}, {timeout[0] * 1000:g} ms")
        advertised = options.read("advertise", advertise, _advertised, own.client_endpoint)
        token = options.read("http_token", http_token, _token, "")
        listen = options.read("http_listen", http_listen, _host, _host_of(binds[0]))
        if not lifted and not token and not is_loopback(f"tcp://{listen}:0"):
            text = f"{listen} is no loopback address; ask for a token with --http-token, or accept "
            raise options.wrong("http_listen", http_listen, text + "anybody with --insecure")
        named = options.read("http_hosts", http_hosts, _hosts, "")
        reached = (advertised, *(peer.client_endpoint for peer in configured))
        return cls(
            name=node,
            data_dir=options.read("data", data, _path, f"coterie-data/{node}"),
            client_bind=binds[0],
            peer_bind=binds[1],
            publish_bind=binds[2],
            advertised_endpoint=advertised,
            peers=configured,
            durability=options.read("durability", durability, _durability, "fsync"),
            election_timeout_s=timeout,
            heartbeat_s=beat,
            insecure=lifted,
            segment_bytes=options.read(
                "segment_bytes", segment_bytes, _segment_bytes, str(SEGMENT_BYTES)
            ),
            keys=options.read("keys", keys, _no_keys, ""),
            log_level=options.read("log_level", log_level, _log_level, "info"),
            log_format=options.read("log_format", log_format, _log_format, "logfmt"),
            deadlock_detection=options.read(
                "deadlock_detection", deadlock_detection, _detection, "both"
            ),
            parent_pipe=options.read("parent_pipe", parent_pipe, _descriptor, ""),
            http_listen=listen,
            http_port=options.read("http_port", http_port, _port, _http_port(binds[0])),
            http_token=token,
            http_hosts=named | {_host_of(known).strip("[]").lower() for known in reached},
        )


class _Options:
    """Where a setting's value came from, and its name for messages."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def _source(self, setting: str, flag: str | None) -> tuple[str, str | None]:
        variable = f"COTERIE_{setting.upper()}"
        if flag is None and (value := self._environ.get(variable)):
            return variable, value
        return f"--{setting.replace('_', '-')}", flag

    def read(self, setting: str, flag: str | None, parse: Callable[[str], T], default: str) -> T:
        source, value = self._source(setting, flag)
        try:
            return parse(default if value is None else value)
        except ConfigurationSecret as error:
            raise ConfigurationError(source, None, str(error)) from None
        except ValueError as error:
            raise ConfigurationError(source, value, str(error)) from None

    def wrong(self, setting: str, flag: str | None, text: str) -> ConfigurationError:
        return ConfigurationError(*self._source(setting, flag), text)


def endpoint(host: str, port: int) -> str:
    """The ZeroMQ endpoint of a host (IPv6 in brackets) and port."""
    return f"tcp://{host}:{port}"


def parse_address(text: str) -> tuple[str, str, str]:
    """The endpoints for clients and for peers and of PUB at HOST:PORT[:PEERS[:PUB]]. Raises
    ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or "*" in match["host"]:
        raise ValueError(f"{text!r} is not HOST:PORT[:PEERS[:PUB]], as in 127.0.0.1:7001")
    return _three(match)


def parse_name(text: str) -> str:
    """A node's name. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError("a name is 1 to 64 letters, digits, '.', '_' or '-'")
    return text


def _peers(text: str) -> tuple[Peer, ...]:
    peers: dict[str, Peer] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, address = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not NAME=HOST:PORT, as in node1=127.0.0.1:7001")
        if parse_name(name) in peers:
            raise ValueError(f"{name} is there twice")
        peers[name] = Peer(name, *parse_address(address))
    if not peers:
        raise ValueError("names no node; write NAME=HOST:PORT,…")
    if len(peers) > NODES_MAX:
        raise ValueError(f"{len(peers)} nodes; at most {NODES_MAX}")
    endpoints = [e for peer in peers.values() for e in peer[1:]]
    for taken in endpoints:
        if endpoints.count(taken) > 1:
            raise ValueError(f"{taken} is used twice (a node has PORT, +100 and +200)")
    return tuple(peers[name] for name in sorted(peers))


def _three(match: re.Match[str]) -> tuple[str, str, str]:
    client = int(match["client"])
    peer = int(match["peer"] or client + PEER_OFFSET)
    publish = int(match["publish"] or client + PUBLISH_OFFSET)
    for port in (client, peer, publish):
        if not 1 <= port <= 65535:
            raise ValueError(f"port {port} is not within 1 to 65535 (peers +100, PUB +200)")
    host = match["host"]
    return endpoint(host, client), endpoint(host, peer), endpoint(host, publish)


def own_address(bind: str | None, advertise: str | None) -> str:
    """By which HOST:PORT:PEERS:PUB the others reach a node that joins them, from what it listens
    on and what clients are told. Raises ValueError where that is not said."""
    bound = _BIND.fullmatch(bind or "127.0.0.1")
    told = _ADDRESS.fullmatch(advertise) if advertise else None
    if bound is None:
        raise ValueError(f"{bind!r} is not HOST[:PORT[:PEERS[:PUB]]], as in 10.0.0.4:7001")
    host = told["host"] if told else bound["host"]
    if host in ("*", "0.0.0.0", "[::]"):
        raise ValueError(f"{host} is where to listen; say with --advertise HOST:PORT where "
                         "the others reach this node")  # fmt: skip
    default = told["client"] if told else str(PORT)
    listened = bound if bound["client"] else _ADDRESS.fullmatch(f"{host}:{default}")
    assert listened is not None
    ports = [where.rpartition(":")[2] for where in _three(listened)]
    return ":".join([host, default if told else ports[0], *ports[1:]])


def _own_bind(own: Peer) -> str:
    """What a node listens on unless told: the address the others know it by."""
    ports = ":".join(known.rpartition(":")[2] for known in own[1:])
    return f"{own.client_endpoint.rpartition(':')[0]}:{ports}"


def _bind(text: str, own: Peer) -> tuple[str, str, str]:
    match = _BIND.fullmatch(text)
    if match is None:
        raise ValueError("is not HOST[:PORT[:PEERS[:PUB]]], as in 0.0.0.0 or 0.0.0.0:7001")
    host = "127.0.0.1" if match["host"] == "localhost" else match["host"]
    if host == "*":
        host = "0.0.0.0"
    if not host.startswith("[") and not re.fullmatch(r"[0-9.]+", host):
        raise ValueError(f"ZeroMQ listens on addresses, not on the host name {host!r}; "
                         "give one with --bind, as in --bind 0.0.0.0")  # fmt: skip
    if match["client"] is not None:
        three = _three(match)
        return cast(
            "tuple[str, str, str]", tuple(endpoint(host, int(e.rpartition(":")[2])) for e in three)
        )
    client, peer, publish = (int(known.rpartition(":")[2]) for known in own[1:])
    return endpoint(host, client), endpoint(host, peer), endpoint(host, publish)


def _host_of(bound: str) -> str:
    return bound.removeprefix("tcp://").rpartition(":")[0]


def _http_port(client_bind: str) -> str:
    port = int(client_bind.rpartition(":")[2]) + HTTP_OFFSET
    return str(port if port <= 65535 else 0)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError("is no port (0: HTTP is not served)")
    return int(text)


def _host(text: str) -> str:
    match = re.fullmatch(_HOST, text)
    if match is None or text.startswith("tcp://"):
        raise ValueError("is no address to listen on, as in 127.0.0.1 or 0.0.0.0")
    return "0.0.0.0" if text == "*" else text


def _token(text: str) -> str:
    if text and not re.fullmatch(r"[\x21-\x7e]{16,256}", text):
        raise ConfigurationSecret("a token has 16 to 256 printable ASCII characters, no spaces")
    return text


def _hosts(text: str) -> frozenset[str]:
    names = [part.strip().lower() for part in text.split(",")]
    for name in filter(None, names):
        if not re.fullmatch(r"[a-z0-9_-][a-z0-9._-]*", name):
            raise ValueError(f"{name!r} is no host name")
    return frozenset(filter(None, names))


def _advertised(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or match["peer"] or match["host"] in ("*", "0.0.0.0", "[::]"):
        raise ValueError("is not the HOST:PORT by which clients reach this node")
    return endpoint(match["host"], int(match["client"]))


def _durability(text: str) -> Durability:
    if text not in ("fsync", "relaxed"):
        raise ValueError("is neither fsync (every answer is on disk) nor relaxed")
    return cast(Durability, text)


def _log_level(text: str) -> LogLevel:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError("is none of debug, info, warning, error")
    return cast(LogLevel, text.lower())


def _log_format(text: str) -> LogFormat:
    if text not in ("logfmt", "json"):
        raise ValueError("is neither logfmt nor json")
    return cast(LogFormat, text)


def _detection(text: str) -> Detection:
    if text not in ("both", "enqueue", "sweep"):
        raise ValueError("is none of both, enqueue (when a wait begins), sweep (every 5 s)")
    return cast(Detection, text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 60_000:  # also refuses nan
        raise ValueError("is no number of milliseconds from 1 to 60000")
    return value / 1000


def _range_ms(text: str) -> tuple[float, float]:
    least, dash, most = text.partition("-")
    if not dash:
        raise ValueError("is not LEAST-MOST in milliseconds, as in 150-300")
    low, high = _milliseconds(least), _milliseconds(most)
    if high <= low:
        raise ValueError("the second must be greater, or nodes stand for election together")
    return low, high


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("is neither yes nor no")


def _segment_bytes(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError("is no number of bytes")
    if not SEGMENT_BYTES_MIN <= int(text) <= SEGMENT_BYTES_MAX:
        raise ValueError(f"is not within {SEGMENT_BYTES_MIN} and {SEGMENT_BYTES_MAX} bytes")
    return int(text)


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("is no path")
    return Path(text)


def _no_keys(text: str) -> None:
    if text:
        raise ValueError("keys are not there yet; bind loopback, or any address with --insecure")


def _descriptor(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("is no file descriptor")
    return int(text) if text else None
