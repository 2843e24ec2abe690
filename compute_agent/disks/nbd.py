# SPDX-License-Identifier: Apache-2.0
"""A client for NBD exports on a unix socket: what a reader of frozen disks needs.

Fixed newstyle handshake, structured replies, meta contexts (`base:allocation`,
`qemu:dirty-bitmap:NAME`) and reads with several requests in flight, delivered
in order. Called by `stream`; it calls nothing of ours. The wire format is in
the NBD project's proto.md.

    NbdError                   the frozen view cannot be read
    ├── NbdConnectionLost      the server went away, stalled, or was never there
    ├── NbdRefused             no such export or meta context
    ├── NbdReadFailed          the server could not read its disk
    └── NbdProtocolError       the server does not speak the protocol as we do
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from common.errors import JobFailed
from compute_agent.disks.receiver import Read, Receiver

ALLOCATION_CONTEXT = "base:allocation"
#: Flags of `base:allocation`.
STATE_HOLE, STATE_ZERO = 1, 2
#: Flag of a `qemu:dirty-bitmap:NAME` context.
STATE_DIRTY = 1

#: Reads in flight, in bytes and in number. 8 MiB keeps QEMU busy between two of
#: our system calls (3 GB/s against 1.1 with one request at a time).
_IN_FLIGHT_BYTES = 8 << 20
_IN_FLIGHT_REQUESTS = 32
_RECEIVE_BUFFER_BYTES = 4 << 20
#: A request's length has 32 bits; a round number of any server's blocks below that.
_BLOCK_STATUS_BYTES = (1 << 32) - (1 << 25)
#: Largest reply that is not data: a block status reply of QEMU has 1 MiB at most.
_REPLY_MAX_BYTES = 32 << 20

_SERVER_MAGIC, _OPTION_MAGIC = 0x4E42444D41474943, 0x49484156454F5054
_OPTION_REPLY_MAGIC, _REQUEST_MAGIC = 0x3E889045565A9, 0x25609513
_SIMPLE_REPLY_MAGIC, _STRUCTURED_REPLY_MAGIC = 0x67446698, 0x668E33EF
_FLAG_FIXED_NEWSTYLE, _FLAG_NO_ZEROES = 1, 2
_OPT_GO, _OPT_STRUCTURED_REPLY, _OPT_SET_META_CONTEXT = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT, _REP_ERROR = 1, 3, 4, 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_CMD_READ, _CMD_DISCONNECT, _CMD_BLOCK_STATUS = 0, 2, 7
_CHUNK_DONE = 1
_CHUNK_DATA, _CHUNK_BLOCK_STATUS, _CHUNK_ERROR = 1, 5, 1 << 15


class NbdError(JobFailed):
    """The frozen view of the disk cannot be read."""

    code = "export_unreadable"


class NbdConnectionLost(NbdError):
    """The server closed the connection, did not answer in time, or was not there."""

    retryable = True


class NbdRefused(NbdError):
    """The server has no such export, or does not offer a meta context that was asked for."""


class NbdReadFailed(NbdError):
    """The server could not read the disk behind the export."""


class NbdProtocolError(NbdError):
    """The server sent something that the protocol does not allow."""


class Extent(NamedTuple):
    """A stretch of the export (in bytes) whose state, in one meta context, is `flags`."""

    offset: int
    length: int
    flags: int


class _Chunk(NamedTuple):
    """The head of one reply; a simple reply counts as a finished chunk."""

    kind: int
    done: bool
    cookie: int
    length: int


class NbdClient:
    """A connection to one export; for one thread, except for `abort`.

    `size_bytes` is the export's size. `contexts` are the meta contexts to
    negotiate; each must be offered. Every operation on the socket is bounded by
    `timeout_s`. Raises NbdConnectionLost, NbdRefused or NbdProtocolError.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        export_name: str = "",
        *,
        contexts: Iterable[str] = (ALLOCATION_CONTEXT,),
        timeout_s: float = 30.0,
    ) -> None:
        self.size_bytes = 0
        self.max_read_bytes = 32 << 20
        self._name = export_name
        self._cookie = 0
        self._contexts: dict[int, str] = {}
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect(os.fspath(socket_path), timeout_s)
            self._handshake(list(contexts))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def extents(self, context: str = ALLOCATION_CONTEXT) -> Iterator[Extent]:
        """Yield the whole export's extents in one negotiated context, in order, merged."""
        if context not in self._contexts.values():
            raise NbdRefused(f"meta context {context} was not negotiated")
        current: Extent | None = None
        offset = 0
        while offset < self.size_bytes:
            for length, flags in self._block_status(offset, context):
                length = min(length, self.size_bytes - offset)
                if current is not None and current.flags == flags:
                    current = current._replace(length=current.length + length)
                else:
                    if current is not None:
                        yield current
                    current = Extent(offset, length, flags)
                offset += length
        if current is not None:
            yield current

    def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        """Yield the data of each (offset, length) in bytes, in order, several reads in flight.

        A piece may be `max_read_bytes` long at the most. Abandoning the
        iterator breaks the connection: only `close` is sensible then.
        """
        waiting = iter(pieces)
        reads: collections.deque[Read] = collections.deque()
        with Receiver(self._receive_data, self.abort) as receiver:
            self._fill(waiting, reads, receiver)
            while reads:
                first = reads.popleft()
                receiver.wait_for(first)
                yield first.buffer
                self._fill(waiting, reads, receiver)

    def abort(self) -> None:
        """Break the connection from another thread: whatever waits on it fails at once.

        Also at the server's end. A QEMU that waits for room in the socket does not
        see the break as long as what it sent lies there unread, and whoever ends
        the backup job then makes its main loop, and so the guest, wait for us.
        """
        with contextlib.suppress(OSError):  # already gone: nothing waits on it
            self._socket.shutdown(socket.SHUT_RDWR)
            while self._socket.recv(_RECEIVE_BUFFER_BYTES, socket.MSG_DONTWAIT):
                pass

    def close(self) -> None:
        """Say goodbye, if there is still somebody who listens, and close the socket."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(NbdError):  # nobody listens any more
            self._request(_CMD_DISCONNECT, 0, 0)
        self._socket.close()

    # The handshake.

    def _connect(self, path: str, timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise NbdConnectionLost(
                f"export {self._name!r} cannot be reached: {error.strerror or 'no answer in time'}"
            ) from error

    def _handshake(self, contexts: list[str]) -> None:
        magic, option_magic, flags = struct.unpack(">QQH", self._receive(18))
        if (magic, option_magic) != (_SERVER_MAGIC, _OPTION_MAGIC):
            raise NbdProtocolError("the socket is not that of an NBD server")
        if not flags & _FLAG_FIXED_NEWSTYLE:
            raise NbdProtocolError("the NBD server is too old (no fixed newstyle handshake)")
        self._send(struct.pack(">I", _FLAG_FIXED_NEWSTYLE | (flags & _FLAG_NO_ZEROES)))
        self._option(_OPT_STRUCTURED_REPLY)
        kind, _ = self._option_reply(_OPT_STRUCTURED_REPLY)
        if contexts:
            if kind != _REP_ACK:
                raise NbdRefused("the NBD server has no structured replies, so no block map")
            self._negotiate_contexts(contexts)
        self._go()

    def _negotiate_contexts(self, contexts: list[str]) -> None:
        queries = b"".join(_counted(name) for name in contexts)
        self._option(
            _OPT_SET_META_CONTEXT,
            _counted(self._name) + struct.pack(">I", len(contexts)) + queries,
        )
        for kind, data in self._replies(_OPT_SET_META_CONTEXT):
            if kind == _REP_META_CONTEXT:
                self._contexts[struct.unpack(">I", data[:4])[0]] = data[4:].decode()
        missing = set(contexts) - set(self._contexts.values())
        if missing:
            raise NbdRefused(f"export {self._name!r} does not offer {', '.join(sorted(missing))}")

    def _go(self) -> None:
        self._option(_OPT_GO, _counted(self._name) + struct.pack(">HH", 1, _INFO_BLOCK_SIZE))
        for kind, data in self._replies(_OPT_GO):
            if kind != _REP_INFO:
                continue
            topic = struct.unpack(">H", data[:2])[0]
            if topic == _INFO_EXPORT:
                self.size_bytes = struct.unpack(">Q", data[2:10])[0]
            elif topic == _INFO_BLOCK_SIZE:
                self.max_read_bytes = min(self.max_read_bytes, struct.unpack(">I", data[10:14])[0])

    def _option(self, option: int, data: bytes = b"") -> None:
        self._send(struct.pack(">QII", _OPTION_MAGIC, option, len(data)) + data)

    def _replies(self, option: int) -> Iterator[tuple[int, bytes]]:
        """Yield an option's replies until it is acknowledged; raise NbdRefused on an error."""
        while True:
            kind, data = self._option_reply(option)
            if kind == _REP_ACK:
                return
            if kind & _REP_ERROR:
                why = data.decode(errors="replace") or f"error {kind & ~_REP_ERROR}"
                raise NbdRefused(f"export {self._name!r} is refused: {why}")
            yield kind, data

    def _option_reply(self, option: int) -> tuple[int, bytes]:
        magic, echoed, kind, length = struct.unpack(">QIII", self._receive(20))
        if magic != _OPTION_REPLY_MAGIC or echoed != option or length > _REPLY_MAX_BYTES:
            raise NbdProtocolError("the NBD server's answer to an option is malformed")
        return kind, self._receive(length)

    # Transmission.

    def _fill(
        self,
        waiting: Iterator[tuple[int, int]],
        reads: collections.deque[Read],
        receiver: Receiver,
    ) -> None:
        total = sum(len(read.buffer) for read in reads)
        while total < _IN_FLIGHT_BYTES and len(reads) < _IN_FLIGHT_REQUESTS:
            piece = next(waiting, None)
            if piece is None:
                return
            offset, length = piece
            if length > self.max_read_bytes:
                raise ValueError(f"a read has {self.max_read_bytes} bytes at most, not {length}")
            read = Read(self._next_cookie(), offset, bytearray(length))
            receiver.expect(read)
            self._request(_CMD_READ, offset, length, read.cookie)
            reads.append(read)
            total += length

    def _receive_data(self, in_flight: Mapping[int, Read]) -> int | None:
        """Receive one reply's part into its buffer; return its cookie if that was the last part."""
        chunk = self._receive_chunk()
        read = in_flight.get(chunk.cookie)
        if read is None:
            raise NbdProtocolError("the NBD server answered a request that was never made")
        if chunk.kind == _CHUNK_DATA:
            self._receive_data_into(read, chunk.length)
        else:
            self._receive(chunk.length)  # a hole: its part of the buffer is zero already
        return chunk.cookie if chunk.done else None

    def _receive_data_into(self, read: Read, length: int) -> None:
        start = struct.unpack(">Q", self._receive(8))[0] - read.offset
        size = length - 8
        if start < 0 or size < 0 or start + size > len(read.buffer):
            raise NbdProtocolError("the NBD server sent data that was not asked for")
        self._receive_into(memoryview(read.buffer)[start : start + size])

    def _block_status(self, offset: int, context: str) -> list[tuple[int, int]]:
        """Return [(length, flags), ...] from `offset` on; at least one, none of length 0."""
        length = min(_BLOCK_STATUS_BYTES, self.size_bytes - offset)
        cookie = self._next_cookie()
        self._request(_CMD_BLOCK_STATUS, offset, length, cookie)
        found: list[tuple[int, int]] = []
        done = False
        while not done:
            chunk = self._receive_chunk()
            data = self._receive(chunk.length)
            if chunk.cookie != cookie:
                raise NbdProtocolError("the NBD server answered a request that was never made")
            if chunk.kind == _CHUNK_BLOCK_STATUS and self._context_of(data) == context:
                found = list(struct.iter_unpack(">II", data[4:]))
            done = chunk.done
        if not found or not all(size for size, _ in found):
            raise NbdProtocolError("the NBD server sent an empty block map")
        return found

    def _context_of(self, data: bytes) -> str | None:
        return self._contexts.get(struct.unpack(">I", data[:4])[0])

    def _receive_chunk(self) -> _Chunk:
        """Receive a reply's head; raise NbdReadFailed if it is an error's."""
        magic = struct.unpack(">I", self._receive(4))[0]
        if magic != _STRUCTURED_REPLY_MAGIC:
            raise NbdProtocolError("the NBD server's reply is not a structured one")
        flags, kind, cookie, length = struct.unpack(">HHQI", self._receive(16))
        if length > _REPLY_MAX_BYTES + 8:
            raise NbdProtocolError("the NBD server's reply is too long")
        if kind & _CHUNK_ERROR:
            number = struct.unpack(">I", self._receive(length)[:4])[0]
            raise NbdReadFailed(f"export {self._name!r} cannot be read: {os.strerror(number)}")
        return _Chunk(kind, bool(flags & _CHUNK_DONE), cookie, length)

    def _next_cookie(self) -> int:
        self._cookie += 1
        return self._cookie

    def _request(self, command: int, offset: int, length: int, cookie: int = 0) -> None:
        self._send(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, command, cookie, offset, length))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            try:
                count = self._socket.recv_into(view)
            except OSError as error:
                raise self._lost(error) from error
            if not count:
                raise NbdConnectionLost(f"the server of export {self._name!r} went away")
            view = view[count:]

    def _lost(self, error: OSError) -> NbdConnectionLost:
        why = "no answer in time" if isinstance(error, TimeoutError) else error.strerror
        return NbdConnectionLost(f"the connection to export {self._name!r} broke: {why}")


def _counted(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data
