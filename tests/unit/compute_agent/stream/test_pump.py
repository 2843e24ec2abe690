# SPDX-License-Identifier: Apache-2.0
"""The pump delivers the whole image, hashed, or an error; and lets go of everything."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from common.errors import JobFailed
from compute_agent.disks.nbd import NbdConnectionLost
from compute_agent.stream.ahead import Ahead
from compute_agent.stream.extents import full_map
from compute_agent.stream.progress import Meter, Progress
from compute_agent.stream.pump import Digest, Pump, Stopped, UnexpectedLength
from compute_agent.stream.qcow2 import Qcow2Layout
from compute_agent.stream.raw import RawLayout
from compute_agent.stream.throttle import Throttle
from tests.unit.compute_agent.stream.memory import MemorySource

MIB = 1 << 20
CONTENT = bytes(2 * MIB) + bytes(range(256)) * (4 * MIB // 256) + bytes(MIB) + b"end." * 128


class Opened:
    """Opens a source for each pass, and remembers them all."""

    def __init__(self, make: Callable[[], MemorySource]) -> None:
        self._make = make
        self.sources: list[MemorySource] = []

    def __call__(self) -> MemorySource:
        self.sources.append(self._make())
        return self.sources[-1]


def pump_of(
    make: Callable[[], MemorySource],
    *,
    stopped: threading.Event | None = None,
    throttle: Throttle | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Pump:
    return Pump(
        make,
        Qcow2Layout(full_map(MemorySource(CONTENT))),
        throttle=throttle or Throttle(0),
        stopped=stopped or threading.Event(),
        on_progress=on_progress,
        progress_interval_s=0.0,
    )


def digest_of(data: bytes) -> Digest:
    return Digest(size_bytes=len(data), sha512=hashlib.sha512(data).hexdigest())


def threads_of_streams() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("stream-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 2
    while threads_of_streams() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_of_streams() == []


def test_a_pass_is_the_image_and_its_digest_is_of_what_came_through() -> None:
    source = MemorySource(CONTENT)
    expected = b"".join(Qcow2Layout(full_map(source)).stream(source))
    pump = pump_of(lambda: source)
    assert b"".join(pump) == expected
    assert len(pump) == len(expected)
    assert pump.digest == digest_of(expected)
    assert source.closed


def test_each_pass_begins_at_byte_0_with_a_source_and_a_hash_of_its_own() -> None:
    opened = Opened(lambda: MemorySource(CONTENT))
    pump = pump_of(opened)
    broken = iter(pump)
    for _ in range(5):
        next(broken)
    whole = b"".join(pump)
    assert pump.digest == digest_of(whole)
    assert len(opened.sources) == 2
    assert all(source.closed for source in opened.sources)


def test_there_is_no_digest_before_a_pass_was_whole() -> None:
    pump = pump_of(lambda: MemorySource(CONTENT))
    next(iter(pump))
    with pytest.raises(JobFailed):
        _ = pump.digest
    pump.end()
    assert not pump.is_complete


def test_an_error_of_the_reading_thread_reaches_the_sender() -> None:
    class Broken(MemorySource):
        def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
            yield from itertools.islice(super().read_in_order(pieces), 2)
            raise NbdConnectionLost("the server of export 'vda' went away")

    source = Broken(CONTENT)
    with pytest.raises(NbdConnectionLost):
        b"".join(pump_of(lambda: source))
    assert source.closed


def test_an_error_in_opening_the_source_reaches_the_sender() -> None:
    def refuse() -> MemorySource:
        raise NbdConnectionLost("export 'vda' cannot be reached")

    with pytest.raises(NbdConnectionLost):
        b"".join(pump_of(refuse))


def test_a_stop_is_noticed_within_a_second_while_the_disk_does_not_answer() -> None:
    stopped = threading.Event()
    source = MemorySource(CONTENT, gate=threading.Event())
    stream = iter(pump_of(lambda: source, stopped=stopped))
    next(stream)
    threading.Timer(0.1, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        for _ in stream:
            pass
    assert time.monotonic() - began < 1
    assert source.aborted.is_set()


def test_a_stop_is_noticed_within_a_second_while_the_throttle_holds_back() -> None:
    stopped = threading.Event()
    pump = pump_of(lambda: MemorySource(CONTENT), stopped=stopped, throttle=Throttle(1000))
    threading.Timer(0.1, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        b"".join(pump)
    assert time.monotonic() - began < 1


def test_only_what_is_read_from_the_disk_counts_for_the_throttle() -> None:
    """A raw image's zeros cost the guest nothing: at 1 B/s they must not wait."""
    layout = RawLayout.of(MemorySource(bytes(64 * MIB)))
    pump = Pump(
        lambda: MemorySource(bytes(64 * MIB)),
        layout,
        throttle=Throttle(1),
        stopped=threading.Event(),
    )
    assert sum(len(buffer) for buffer in pump) == 64 * MIB


@pytest.mark.parametrize("delta", [-1, 1], ids=["shorter", "longer"])
def test_an_image_of_another_length_than_promised_is_an_error(delta: int) -> None:
    layout = RawLayout.of(MemorySource(CONTENT))
    layout.length_bytes += delta
    layout.stream = RawLayout.of(MemorySource(CONTENT)).stream  # type: ignore[method-assign]
    pump = Pump(
        lambda: MemorySource(CONTENT), layout, throttle=Throttle(0), stopped=threading.Event()
    )
    with pytest.raises(UnexpectedLength):
        b"".join(pump)
    assert not pump.is_complete


def test_progress_rises_to_the_whole() -> None:
    told: list[Progress] = []
    pump = pump_of(lambda: MemorySource(CONTENT), on_progress=told.append)
    b"".join(pump)
    done = [progress.bytes_done for progress in told]
    assert done == sorted(done)
    assert done[-1] == len(pump)
    assert told[-1].percent == 100
    assert told[-1].eta_s == 0


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now = 0.0
    told: list[Progress] = []
    meter = Meter(1000, told.append, interval_s=1.0, clock=lambda: now)
    for seconds, count in [(1.0, 500), *((second, 1) for second in range(2, 23))]:
        now = float(seconds)
        meter.add(count)
    assert told[-1].rate_bytes_s == pytest.approx(1.0)
    assert told[-1].eta_s == pytest.approx(1000 - 521)


def test_the_producer_stays_within_its_bound_ahead_of_the_consumer() -> None:
    made: list[int] = []
    enough = threading.Event()

    def produce() -> Generator[bytes, None, None]:
        for number in range(100):
            made.append(number)
            if number == 4:
                enough.set()
            yield bytes(10)

    ahead = Ahead(produce(), limit_bytes=40, check=lambda: None, name="stream-test")
    try:
        assert enough.wait(2)
        time.sleep(0.05)  # whoever did not keep the bound would be far ahead by now
        assert len(made) == 5
        assert sum(len(buffer) for buffer in ahead) == 1000
    finally:
        ahead.end()


def test_a_producer_that_nobody_takes_from_any_more_is_closed() -> None:
    closed = threading.Event()

    def produce() -> Generator[bytes, None, None]:
        try:
            while True:
                yield bytes(10)
        finally:
            closed.set()

    ahead = Ahead(produce(), limit_bytes=40, check=lambda: None, name="stream-test")
    next(ahead)
    ahead.end()
    assert closed.is_set(), "its connection to the disk is closed, whoever still refers to it"


class Recorder(BaseHTTPRequestHandler):
    """Takes a PUT with a Content-Length and remembers it; never one in chunks."""

    received: list[tuple[dict[str, str], bytes]]

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        self.received.append((dict(self.headers), self.rfile.read(length)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_requests_sends_it_with_its_exact_length_and_not_in_chunks() -> None:
    handler = type("Handler", (Recorder,), {"received": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            pump = pump_of(lambda: MemorySource(CONTENT))
            url = f"http://127.0.0.1:{server.server_port}/image"
            assert requests.put(url, data=pump, timeout=10).status_code == 204
        finally:
            server.shutdown()
            thread.join()
    [(headers, body)] = handler.received
    assert headers["Content-Length"] == str(len(pump))
    assert "Transfer-Encoding" not in headers
    assert digest_of(body) == pump.digest
