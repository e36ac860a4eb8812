"""The listening socket that all workers of a server share.

Invariant: whoever was let in is served; closing the socket resets nobody, because nobody new was let in just before.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

SO_ATTACH_FILTER = 26
"""Linux's number, which the socket module doesn't name."""


def listen(host: str, port: int) -> socket.socket:
    """Return the one listening socket that all workers share. Raises OSError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}; is another server running there?") from None
    return listener


def admit_nobody(listener: socket.socket) -> None:
    """Drop whatever asks for a new connection, so that nobody is let in whom closing the listener would then reset.

    Such a client asks again a second later and is refused like any other that comes too late. Connections that are being
    made are completed. A classic BPF program over the TCP header (Linux, Documentation/networking/filter.rst) does it.
    """
    load_flags, if_syn, drop, keep = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in (load_flags, if_syn, drop, keep)))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 4, ctypes.addressof(program)))
