"""What passes between parent and child: JSON messages with a binary payload, and a frame buffer both map.

JSON and not pickle, because the child has read an untrusted file and the parent must not run what it says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import time
from typing import Any

from aqa_shared.files import scratch

_HEADER = struct.Struct("<II")
_LARGEST = 1 << 28
"""Bytes; a payload is an array of one number a frame, so this allows 33 million frames."""

_SEND_SECONDS = 60.0

SLOTS = 2
"""Chunks of frames in flight: the child fills one while the parent uses the other."""


class Gone(Exception):
    """The other side closed the channel or died."""


class Channel:
    """Messages over one end of a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Raises `Gone` when nobody is there to read."""
        text = json.dumps(message).encode()
        try:
            # A child that was stopped reads nothing: it must not hold the parent beyond any deadline.
            self._sock.settimeout(_SEND_SECONDS)
            self._sock.sendall(_HEADER.pack(len(text), len(payload)) + text + payload)
        except OSError as e:
            raise Gone(str(e)) from e

    def receive(self, seconds: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next message. Raises `TimeoutError` when it is not whole in time, `Gone` at the end."""
        until = None if seconds is None else time.monotonic() + seconds
        text_size, payload_size = _HEADER.unpack(self._exactly(_HEADER.size, until))
        if max(text_size, payload_size) > _LARGEST:
            raise Gone(f"message of {text_size} + {payload_size} bytes")
        text = self._exactly(text_size, until)
        payload = self._exactly(payload_size, until)
        try:
            message = json.loads(text)
        except ValueError as e:
            raise Gone("message is not JSON") from e
        if not isinstance(message, dict):
            raise Gone("message is not an object")
        return message, payload

    def close(self) -> None:
        self._sock.close()

    def _exactly(self, size: int, until: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._sock.settimeout(left)
            else:
                self._sock.settimeout(None)
            try:
                got = self._sock.recv(min(size - len(parts), 1 << 20))
            except TimeoutError:
                raise
            except OSError as e:
                raise Gone(str(e)) from e
            if not got:
                raise Gone("closed")
            parts += got
        return bytes(parts)


def nameless_file(title: str) -> int:
    """Descriptor of an empty file that nobody else can open: in memory, where the system has such files.

    Raises EnvironmentFault, naming TMPDIR, where it would have to be on a disk and none can be written.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            return os.memfd_create(title, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with scratch("aqa-") as folder, (folder / title).open("x+b") as file:
        return os.dup(file.fileno())


class FrameBuffer:
    """Memory that parent and child share by an inherited file descriptor.

    It never has a name, so no way of dying can leave it behind, and it is not bounded by the size of /dev/shm,
    which is 64 MB in a container. Only the parent makes it larger; it is never made smaller.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> FrameBuffer:
        fd = nameless_file("aqa-frames")
        if hasattr(fcntl, "F_ADD_SEALS"):
            # A child that shrank it would make the parent's next look a SIGBUS.
            with contextlib.suppress(OSError):  # not a memfd
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(fd)

    def grow(self, size: int) -> None:
        """At least `size` bytes; views of the old mapping stay valid until they are dropped."""
        if size > os.fstat(self.fd).st_size:
            os.ftruncate(self.fd, size)
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.fd, size)

    def view(self, offset: int, size: int) -> memoryview:
        assert self._map is not None, "grow() comes first"
        return memoryview(self._map)[offset : offset + size]

    def close(self) -> None:
        # Views that the caller still holds keep the memory; the kernel frees it with the last of them.
        self._map = None
        with contextlib.suppress(OSError):
            os.close(self.fd)
        self.fd = -1
