"""On PYTHONPATH, this makes a Python process refuse every connection that leaves the machine."""

import socket

_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo
LOCAL = {"localhost", "127.0.0.1", "::1", "", None}


def refuse(host):
    if (host.decode() if isinstance(host, bytes) else host) not in LOCAL:
        raise RuntimeError(f"no network here, and {host!r} was reached for")  # an OSError might be expected, and caught


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        refuse(address[0])
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    refuse(host)
    return _getaddrinfo(host, *args, **kwargs)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
