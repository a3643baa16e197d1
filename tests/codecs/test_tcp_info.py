"""When a peer is gone while data is in flight, with made-up values and times."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import closing

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp.errors import PeerSilent
from sp.transports import tcp_info
from sp.transports.link import SocketLink
from sp.transports.tcp_info import Silence, TCPInfo

LIMIT = 60.0


@attrs.define
class Kernel:
    """What a kernel would say about a connection as time goes on.

    The last sign of life was an hour ago.
    """

    now: float = 10_000.0
    heard_at: float = 6_400.0
    repeated: int = 0
    in_flight: bool = True
    silence: Silence | None = None

    def look(self) -> None:
        """Check as a link does.  Raises PeerSilent."""
        info = TCPInfo(in_flight=self.in_flight, repeated=self.repeated, heard=self.now - self.heard_at)
        if not info.in_flight:
            self.silence = None
            return
        if self.silence is None:
            self.silence = Silence(info, self.now)
        self.silence.check(info, self.now, LIMIT)

    def wait(self, seconds: float, *, every: float = 7.5) -> None:
        """Check again and again."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + every)
            self.look()

    def answer(self) -> None:
        self.heard_at = self.now


def test_data_that_is_never_acknowledged_ends_it_when_the_time_is_over() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.repeated = 9
    kernel.wait(LIMIT - 0.001)
    with pytest.raises(PeerSilent, match="the peer has acknowledged nothing for 60 s, and has not answered repeated data"):
        kernel.wait(0.001)


def test_an_hour_without_anything_to_say_does_not_count() -> None:
    kernel = Kernel(in_flight=False, repeated=9)
    kernel.wait(1_000)
    kernel.in_flight = True
    kernel.repeated = 0
    kernel.look()
    kernel.repeated = 2
    kernel.wait(LIMIT - 1)


@pytest.mark.parametrize("before", [0, 3])
def test_one_packet_that_is_lost_is_no_lost_peer(before: int) -> None:
    kernel = Kernel(repeated=before)
    kernel.look()
    kernel.repeated += 1
    kernel.wait(1_000)
    kernel.repeated += 1
    with pytest.raises(PeerSilent):
        kernel.wait(1)


def test_a_sign_of_life_begins_the_time_anew() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.repeated = 5
    kernel.wait(LIMIT - 1)
    kernel.answer()
    kernel.wait(1)
    kernel.repeated += 5
    kernel.wait(LIMIT - 1)
    with pytest.raises(PeerSilent):
        kernel.wait(7.5)


def test_data_that_has_arrived_is_no_longer_in_flight() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.repeated = 5
    kernel.wait(LIMIT - 1)
    kernel.in_flight = False
    kernel.look()
    kernel.in_flight = True
    kernel.wait(LIMIT - 1)


@pytest.mark.parametrize("forgets", [True, False], ids=["probes", "retransmissions into a closed window"])
def test_a_peer_that_reads_nothing_and_is_asked_for_room_every_two_minutes_stays(forgets: bool) -> None:
    """The kernel counts its probes from the last answer.

    It goes on counting data that it sends again into a window that was closed.
    """
    kernel = Kernel()
    for _ in range(200):
        kernel.repeated += 1
        kernel.wait(0.1)
        kernel.answer()
        if forgets:
            kernel.repeated = 0
        kernel.wait(120)
    kernel.repeated += 1
    kernel.wait(120)
    kernel.repeated += 1
    with pytest.raises(PeerSilent):
        kernel.wait(1)


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0.01, 200), st.floats(0.01, 20), st.booleans()), max_size=40), st.floats(0.1, 20))
def test_a_peer_that_answers_each_repetition_is_never_gone(steps: list[tuple[float, float, bool]], every: float) -> None:
    kernel = Kernel()
    for pause, delay, forgets in steps:
        kernel.repeated += 1
        kernel.wait(delay, every=every)
        kernel.answer()
        if forgets:
            kernel.repeated = 0
        kernel.wait(pause, every=every)


def raw(**fields: int) -> bytes:
    """Return the bytes that the kernel writes, by the offsets in linux/tcp.h."""
    offsets = {"unacked": 24, "last_data_recv": 52, "last_ack_recv": 56, "notsent_bytes": 144}
    data = bytearray(b"\xa5" * 248)
    data[2], data[3] = fields.get("retransmits", 0), fields.get("probes", 0)
    for name, offset in offsets.items():
        struct.pack_into("=I", data, offset, fields.get(name, 0))
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "info"),
    [
        ({}, TCPInfo(in_flight=False, repeated=0, heard=0)),
        ({"unacked": 1}, TCPInfo(in_flight=True, repeated=0, heard=0)),
        ({"notsent_bytes": 1}, TCPInfo(in_flight=True, repeated=0, heard=0)),
        ({"retransmits": 3}, TCPInfo(in_flight=False, repeated=3, heard=0)),
        ({"probes": 200}, TCPInfo(in_flight=False, repeated=200, heard=0)),
        ({"last_data_recv": 7_000, "last_ack_recv": 2_500}, TCPInfo(in_flight=False, repeated=0, heard=2.5)),
        ({"last_data_recv": 1_500, "last_ack_recv": 2_500}, TCPInfo(in_flight=False, repeated=0, heard=1.5)),
    ],
)
def test_of_what_the_kernel_says_the_right_places_are_read(fields: dict[str, int], info: TCPInfo) -> None:
    assert tcp_info.decode(raw(**fields)) == info
    assert tcp_info.decode(raw(**fields)[: tcp_info.SIZE]) == info


@pytest.mark.parametrize("size", [0, 60, 104, tcp_info.SIZE - 1])
def test_an_old_kernel_says_too_little(size: int) -> None:
    assert tcp_info.decode(raw()[:size]) is None
    assert tcp_info.acknowledged(raw()[:size]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")
def test_this_kernel_says_enough() -> None:
    with closing(socket.socket()) as sock:
        info = tcp_info.decode(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE))
    assert info is not None
    assert not info.in_flight


def test_the_place_of_what_was_acknowledged_is_the_right_one() -> None:
    data = bytearray(raw())
    struct.pack_into("=Q", data, 120, 5_000_000_000)
    assert tcp_info.acknowledged(bytes(data)) == 5_000_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")
def test_a_link_tells_what_its_peer_has_acknowledged_where_the_system_does() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server, closing(socket.create_connection(server.getsockname())) as sock:
        link = SocketLink(sock, "", "")
        before = link.acknowledged()
        assert link.send(bytes(1000)) == 1000
        with closing(server.accept()[0]) as peer:
            peer.recv(1000, socket.MSG_WAITALL)
            while link.acknowledged() == before:
                pass
        assert link.acknowledged() - before == 1000
    assert link.acknowledged() == 0
    for sock in socket.socketpair():
        with closing(sock):
            assert SocketLink(sock, "", "").acknowledged() == 0
