"""Where a server is reached: a socket that listens, and the names of this machine."""

from __future__ import annotations

import ipaddress
import socket

from hkmap.errors import OutputError

BACKLOG = 2048


def listening(host: str, ports: tuple[int, ...]) -> socket.socket:
    """Return a socket at the first of ``ports`` that is free, 0 for any; raise OutputError where none is."""
    for port in ports:
        try:
            return _bound(host, port)
        except OSError as error:
            failed = error
    raise OutputError(f"{host} port {ports[-1]}: {failed.strerror}; choose another --port or --host, or omit them")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)      # a killed editor's is free at once
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def base_address(host: str, port: int) -> str:
    """Return where a browser finds what listens at ``host``.

    >>> base_address("127.0.0.1", 8000), base_address("::1", 8000)
    ('http://127.0.0.1:8000', 'http://[::1]:8000')
    """
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def own_names(host: str) -> frozenset[str]:
    """Return the names by which people may reach a server that listens at ``host``."""
    others = () if is_loopback(host) else (host, socket.gethostname(), socket.getfqdn())
    return frozenset(name.lower() for name in ("localhost", *others))
