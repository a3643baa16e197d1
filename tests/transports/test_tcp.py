"""tcp: names, interfaces, socket options, and peers that vanish."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import sp
from sp.address import Address
from sp.transports import tcp, tcp_info
from sp.transports.tcp import format_address
from tests.transports.ends import authority, dial, network_only, server_tls
from tests.transports.wire import BUS, REQ, connect, connect_as, expect, receive_exactly, receive_frame, reset

Found = list[
    tuple[Literal[socket.AddressFamily.AF_INET], socket.SocketKind, int, str, tuple[str, int]]
    | tuple[Literal[socket.AddressFamily.AF_INET6], socket.SocketKind, int, str, tuple[str, int, int, int] | tuple[int, bytes]]
]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and uses options of Linux")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 on its loopback interface")


class Resolver(trio.abc.HostnameResolver):
    """A resolver that knows one name and counts the lookups."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked = 0
        self._answers = answers

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Found:
        assert host == b"peer.test"
        addresses = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        found: Found = []
        for address in addresses:
            if family in (0, socket.AF_INET) and ":" not in address:
                found.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0))))
            if family in (0, socket.AF_INET6) and ":" in address:
                plain, _, zone = address.partition("%")
                scope = socket.if_nametoindex(zone) if zone else 0
                found.append((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (plain, int(port or 0), 0, scope)))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


def use_resolver(*answers: list[str]) -> Resolver:
    resolver = Resolver(*answers)
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@contextmanager
def deaf(host: str, port: int) -> Iterator[None]:
    """Let no connection to *host* be answered: Linux ignores them while the backlog is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind((host, port))
        listening.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex((host, port))
        yield


async def ask(req: sp.Req0, rep: sp.Rep0, body: bytes) -> None:
    await req.send(body)
    assert await rep.receive() == body
    await rep.send(b"re: " + body)
    assert await req.receive() == b"re: " + body


# Addresses.


@needs_ipv6
@pytest.mark.parametrize("host", ["*", ""])
async def test_without_a_host_both_families_are_listened_on_with_one_port(host: str) -> None:
    async with sp.Rep0() as rep:
        listener = await rep.listen(f"tcp://{host}:0")
        port = port_of(listener.url)
        assert port > 0
        with trio.fail_after(5):
            for address in ("127.0.0.1", "[::1]"):
                async with sp.Req0() as req:
                    await req.dial(f"tcp://{address}:{port}")
                    await ask(req, rep, address.encode())


@needs_ipv6
async def test_without_a_host_newcomers_of_both_families_are_served_side_by_side() -> None:
    async with sp.Rep0(listen="tcp://*:0") as rep, sp.Req0() as four, sp.Req0() as six:
        port = port_of(rep.url)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(four.dial, f"tcp://127.0.0.1:{port}")
                nursery.start_soon(six.dial, f"tcp://[::1]:{port}")
            await rep.wait_for_peers(2)
        assert rep.listeners[0].statistics().accepted == 2
        rep.listeners[0].close()
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as probe:
                assert probe.connect_ex((host, port)) != 0  # closed in both


@needs_ipv6
@pytest.mark.parametrize(("scheme", "reached", "refused"), [("tcp4", "127.0.0.1", "[::1]"), ("tcp6", "[::1]", "127.0.0.1")])
async def test_one_family_can_be_asked_for(scheme: str, reached: str, refused: str) -> None:
    async with sp.Rep0(listen=f"{scheme}://*:0") as rep, sp.Req0() as req:
        port = port_of(rep.url)
        with trio.fail_after(5):
            with pytest.raises(sp.DialError):
                await req.dial(f"tcp://{refused}:{port}")
            await req.dial(f"tcp://{reached}:{port}")
            await ask(req, rep, b"hello")


@needs_ipv6
async def test_an_ipv6_address_stands_in_brackets() -> None:
    async with sp.Rep0(listen="tcp://[::1]:0") as rep, sp.Req0() as req:
        url = rep.url
        assert url.startswith("tcp://[::1]:")
        with trio.fail_after(5):
            await req.dial(url)
            await ask(req, rep, b"hello")
        assert req.pipes[0].remote_address == url.removeprefix("tcp://")


# Zones: a link-local address needs a network interface.


@pytest.fixture(scope="module")
def link_local() -> str:
    """A link-local address of this machine, with its zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        lines = []
    for digits, _, _, scope, _, name in map(str.split, lines):
        if scope == "20":
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{name}"
    pytest.skip("this machine has no link-local address")


@pytest.mark.parametrize("scheme", ["tcp", "tcp6", "tls+tcp", "tls+tcp6", "ws", "ws6", "wss", "wss6"])
@pytest.mark.parametrize("percent", ["%", "%25"])
async def test_a_link_local_address_keeps_its_zone_and_can_be_dialed_back(link_local: str, scheme: str, percent: str) -> None:
    plain = link_local.partition("%")[0]
    tls = scheme.startswith(("tls", "wss"))
    server = authority().server(plain) if tls else None
    client = authority().client() if tls else None
    async with sp.Rep0(tls=server) as rep, sp.Req0(tls=client) as req, sp.Req0(tls=client) as again:
        listener = await rep.listen(f"{scheme}://[{link_local.replace('%', percent)}]:0")
        port = port_of(listener.url)
        assert listener.url == f"{scheme}://[{link_local}]:{port}"
        with trio.fail_after(10):
            await req.dial(f"{scheme}://[{link_local.replace('%', percent)}]:{port}")
            await ask(req, rep, b"hello")
            here, there = req.pipes[0], rep.pipes[0]
            assert here.remote_address == there.local_address == f"[{link_local}]:{port}"
            assert here.local_address == there.remote_address == f"[{link_local}]:{port_of(here.local_address)}"
            if there.http is not None:  # a zone means nothing on another machine (RFC 6874, 4)
                assert there.http.headers["Host"] == f"[{plain}]:{port}"
            await again.dial(f"{scheme}://{here.remote_address}")
            await ask(again, rep, b"again")


@pytest.mark.parametrize("scheme", ["tcp", "tcp6"])
async def test_a_name_may_have_a_link_local_address(link_local: str, scheme: str) -> None:
    use_resolver([link_local])
    async with sp.Rep0(listen=f"tcp://[{link_local}]:0") as rep, sp.Req0() as req:
        with trio.fail_after(5):
            await req.dial(f"{scheme}://peer.test:{port_of(rep.url)}")
            await ask(req, rep, b"hello")


@needs_ipv6
@pytest.mark.parametrize("scheme", ["tcp", "ws6"])
async def test_a_zone_that_this_machine_does_not_have_is_named(scheme: str) -> None:
    async with sp.Bus0() as bus:
        with trio.fail_after(5):
            with pytest.raises(OSError, match="this machine has no network interface 'no-such-1'"):
                await bus.listen(f"{scheme}://[fe80::1%no-such-1]:0")
            with pytest.raises(sp.DialError, match="this machine has no network interface 'no-such-1'"):
                await bus.dial(f"{scheme}://[fe80::1%25no-such-1]:80")


@linux_only
@needs_ipv6
async def test_an_address_that_takes_no_zone_is_explained() -> None:
    zone = socket.if_nameindex()[0][1]
    words = rf"only a link-local address \(fe80::...\) takes a network interface: write '::1' without '%{zone}'"
    async with sp.Bus0() as bus:
        with trio.fail_after(5):
            with pytest.raises(OSError, match=words):
                await bus.listen(f"tcp://[::1%{zone}]:0")
            with pytest.raises(sp.DialError, match=words):
                await bus.dial(f"tcp://[::1%{zone}]:80")


@linux_only
@needs_ipv6
@pytest.mark.parametrize("scheme", ["tcp", "tcp6", "ws"])
async def test_a_link_local_address_without_a_zone_is_explained(scheme: str) -> None:
    words = r"needs its network interface, as in \[fe80::1%eth0\]"
    async with sp.Bus0() as bus:
        with trio.fail_after(5):
            with pytest.raises(OSError, match=words):
                await bus.listen(f"{scheme}://[fe80::1]:0")
            with pytest.raises(sp.DialError, match=words):
                await bus.dial(f"{scheme}://[fe80::1]:80")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("eth0", "eth0"), ("br-lan.100", "br-lan.100"), ("25gbe0", "2525gbe0"), ("a@b", "4711"), ("", "4711")],
)
def test_an_address_is_shown_with_its_zone_as_it_can_be_dialed(name: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(index: int) -> str:
        if not name:
            raise OSError(6, "No such device or address")
        return name

    monkeypatch.setattr(socket, "if_indextoname", name_of)
    text = format_address(("fe80::1", 80, 0, 4711))
    assert text == f"[fe80::1%{shown}]:80"
    assert Address.parse(f"tcp://{text}").host == f"fe80::1%{'25gbe0' if name == '25gbe0' else shown}"
    assert format_address(("2001:db8::1", 80, 0, 0)) == "[2001:db8::1]:80"
    assert format_address(("192.0.2.1", 80)) == "192.0.2.1:80"


async def test_port_zero_gives_a_free_port_which_the_url_tells() -> None:
    async with sp.Rep0(listen=["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]) as rep:
        urls = [listener.url for listener in rep.listeners]
        assert len({port_of(url) for url in urls} - {0}) == 2
        with trio.fail_after(5):
            for url in urls:
                async with sp.Req0() as req:
                    await req.dial(url)
                    await ask(req, rep, url.encode())


@pytest.mark.parametrize("url", ["tcp://*:80", "tcp://:80", "tcp://127.0.0.1:0"])
async def test_an_address_only_for_listening_cannot_be_dialed(url: str) -> None:
    async with sp.Req0() as req:
        with trio.fail_after(5), pytest.raises((sp.AddressError, sp.DialError)) as caught:
            await req.dial(url)
        assert url in str(caught.value)


# Names.


@needs_ipv6
async def test_a_name_with_a_dead_first_address_and_a_live_second_connects() -> None:
    use_resolver(["::1", "127.0.0.1"])
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req:
        with trio.fail_after(5):
            await req.dial(f"tcp://peer.test:{port_of(rep.url)}")
            await ask(req, rep, b"hello")


@pytest.mark.slow
@linux_only
async def test_a_name_whose_first_address_never_answers_connects_by_the_second() -> None:
    use_resolver(["127.0.0.2", "127.0.0.1"])
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0(handshake_timeout=5) as req:
        port = port_of(rep.url)
        with deaf("127.0.0.2", port), trio.fail_after(4):
            await req.dial(f"tcp://peer.test:{port}")
            await ask(req, rep, b"hello")


@linux_only
@needs_ipv6
async def test_the_other_family_is_tried_second(autojump_clock: trio.testing.MockClock) -> None:
    use_resolver(["127.0.0.2", "127.0.0.3", "127.0.0.4", "::1"])
    async with sp.Rep0(listen="tcp://[::1]:0") as rep, sp.Req0() as req:
        port = port_of(rep.url)
        with deaf("127.0.0.2", port), deaf("127.0.0.3", port), deaf("127.0.0.4", port):
            began = trio.current_time()
            await req.dial(f"tcp://peer.test:{port}")
            assert 0.2 < trio.current_time() - began < 0.5


@linux_only
async def test_attempts_at_several_addresses_are_given_up_together(autojump_clock: trio.testing.MockClock) -> None:
    use_resolver(["127.0.0.2", "127.0.0.3"])
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.4", 0))
        port = reserved.getsockname()[1]
        with deaf("127.0.0.2", port), deaf("127.0.0.3", port):
            async with sp.Req0() as req:
                before = os.listdir("/proc/self/fd")
                with trio.move_on_after(1) as scope:
                    await req.dial(f"tcp://peer.test:{port}")
                assert scope.cancelled_caught
                await trio.testing.wait_all_tasks_blocked()
                assert os.listdir("/proc/self/fd") == before


@linux_only
async def test_a_name_of_one_family_is_tried_at_all_its_addresses() -> None:
    use_resolver(["::1", "127.0.0.2", "127.0.0.1"])
    async with sp.Rep0(listen="tcp4://127.0.0.1:0") as rep, sp.Req0() as req:
        with trio.fail_after(5):
            await req.dial(f"tcp4://peer.test:{port_of(rep.url)}")
            await ask(req, rep, b"hello")


async def test_a_name_with_no_live_address_fails_with_the_real_cause() -> None:
    use_resolver(["127.0.0.2", "127.0.0.1"])
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        async with sp.Req0() as req:
            with trio.fail_after(5), pytest.raises(sp.DialError, match=r"(?i)refused") as caught:
                await req.dial(f"tcp://peer.test:{reserved.getsockname()[1]}")
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@linux_only
async def test_each_different_reason_of_a_names_addresses_is_reported_once() -> None:
    use_resolver(["127.0.0.1", "255.255.255.255", "127.0.0.2"])
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        async with sp.Req0() as req:
            with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
                await req.dial(f"tcp://peer.test:{reserved.getsockname()[1]}")
    told = str(caught.value)
    assert (told.count("Connection refused"), told.count("; ")) == (1, 1), told


@pytest.mark.timeout(10)
async def test_an_address_that_fails_is_followed_by_the_next_one_at_once(mock_clock: MockClock) -> None:
    use_resolver(["127.0.0.2", "127.0.0.1"])
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req:
        await req.dial(f"tcp://peer.test:{port_of(rep.url)}")  # no time passes
        await ask(req, rep, b"hello")


async def test_of_two_connections_that_are_made_at_the_same_moment_one_is_closed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    use_resolver(["127.0.0.2", "127.0.0.1"])
    arrived = trio.Event()
    opened: list[socket.socket] = []

    async def connect_at_last(*_: object) -> socket.socket:
        if opened:
            arrived.set()
        opened.append(socket.socket())
        ours = opened[-1]
        with trio.CancelScope(shield=True):  # it is too late for that
            await arrived.wait()
        return ours

    monkeypatch.setattr(tcp, "_open", connect_at_last)
    async with sp.Req0() as req:
        link = await tcp.connect_link(Address.parse("tcp://peer.test:1"), req._core.endpoint_config)
        assert [sock.fileno() >= 0 for sock in opened].count(True) == 1
        link.close()


async def test_a_name_that_does_not_exist_fails_with_the_resolvers_words() -> None:
    use_resolver([])
    async with sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError, match="Name or service not known") as caught:
            await req.dial("tcp://peer.test:5555")
        assert isinstance(caught.value.__cause__, socket.gaierror)


@linux_only
async def test_a_name_is_looked_up_again_at_each_redial_so_a_peer_that_moved_is_found() -> None:
    resolver = use_resolver(["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"])
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as old, sp.Rep0() as new, sp.Req0(redial_min=0.01, redial_max=0.01) as req:
        port = port_of(old.url)
        await new.listen(f"tcp://127.0.0.2:{port}")
        with trio.fail_after(5):
            await req.dial(f"tcp://peer.test:{port}")
            await ask(req, old, b"one")
            assert resolver.asked == 1
            for count, (left, right) in enumerate([(old, new), (new, old)], 2):
                left.pipes[0].close()
                await right.wait_for_peers()
                await req.wait_for_peers()
                await ask(req, right, b"two")
                assert resolver.asked == count


class Hanging:
    """A resolver whose servers do not answer.

    Lookups of names hang until they are released, and then find nothing.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self.released = threading.Event()
        self._system = socket.getaddrinfo
        self._lock = threading.Lock()

    def getaddrinfo(self, host: str | bytes | None, port: int, family: int, kind: int, protocol: int, flags: int) -> object:
        if host is None or flags & socket.AI_NUMERICHOST:
            return self._system(host, port, family, kind, protocol, flags)
        with self._lock:
            self.under_way += 1
        self.released.wait(60)
        with self._lock:
            self.under_way -= 1
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    resolver = Hanging()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.released.set()


async def test_lookups_that_hang_are_bounded_and_do_not_take_the_programs_threads(hanging: Hanging) -> None:
    async with sp.Bus0() as bus:
        events = bus.events()
        for number in range(100):
            await bus.dial(f"tcp://peer-{number}.test:5555", wait=False)
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(lambda: "the program's own") == "the program's own"
            while hanging.under_way < 64:
                await trio.testing.wait_all_tasks_blocked()
            assert hanging.under_way == 64
            waiting = {dialer.url for dialer in bus.dialers[:-1]}
            bus.dialers[-1].close()  # a dialer that waits for a thread
            hanging.released.set()
            while waiting:
                event = await expect(events, sp.EventKind.DIAL_FAILED)
                assert isinstance(event.error, socket.gaierror)
                waiting.discard(event.url)


async def test_an_address_needs_no_thread_while_all_lookups_hang(hanging: Hanging) -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req:
        for number in range(100):
            await req.dial(f"tls+tcp4://peer-{number}.test:5555", wait=False)
        with trio.fail_after(30):
            await req.dial(rep.url)
            await ask(req, rep, b"hello")


async def test_a_lookup_that_hangs_is_named_in_the_error(hanging: Hanging, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Bus0(handshake_timeout=5) as bus:
        for number in range(64):
            others = "$" if number < 63 else ": 64 lookups are hanging, and no more can run at the same time"
            with pytest.raises(sp.DialError, match=f"the name 'peer.test' was not looked up within 4.5 s{others}"):
                await bus.dial("ws://peer.test:5555")


async def test_a_lookup_for_listening_that_hangs_can_be_cancelled(hanging: Hanging, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Bus0() as bus:
        with trio.move_on_after(100) as scope:
            await bus.listen("tcp://peer.test:5555")
        assert scope.cancelled_caught
        assert bus.listeners == ()


# Options of the kernel's sockets.


@contextmanager
def kernel_socket(pipe: sp.Pipe) -> Iterator[socket.socket]:
    """Find the descriptor behind *pipe* among all of the process."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = os.dup(int(entry.name))
        except OSError:
            continue
        try:
            sock = socket.socket(fileno=copy)
        except OSError:  # not a socket
            os.close(copy)
            continue
        with sock:
            try:
                ends = [f"{host}:{port}" for host, port in (sock.getsockname(), sock.getpeername())]
            except (OSError, ValueError):
                continue
            if ends == [pipe.local_address, pipe.remote_address]:
                yield sock
                return
    raise AssertionError("no such socket")


@linux_only
@network_only
async def test_both_ends_have_no_delay_and_keepalive_with_the_time_that_was_asked_for(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), tcp_keepalive=20) as rep, sp.Req0() as req:
        with trio.fail_after(5):
            await dial(req, rep.url)
            await rep.wait_for_peers()
        for pipe, seconds in ((rep.pipes[0], 20), (req.pipes[0], 60)):
            with kernel_socket(pipe) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                idle, interval, count = (
                    sock.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                )
                assert count >= 2  # one lost probe does not mean a lost peer
                assert seconds * 0.9 <= idle + interval * count <= seconds
                # It would end connections to slow readers.
                assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


@linux_only
async def test_keepalive_can_be_left_to_the_kernel() -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0(tcp_keepalive=None) as req:
        with trio.fail_after(5):
            await req.dial(rep.url)
        with kernel_socket(req.pipes[0]) as sock:
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Peers that vanish.


def go_deaf(sock: trio.socket.SocketType | socket.socket) -> None:
    """Drop all that arrives for *sock* before the kernel acknowledges it, like a pulled cable."""
    # One instruction: return 0 bytes.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    filters = struct.pack("HP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, 26, filters)  # SO_ATTACH_FILTER


@pytest.mark.slow
@linux_only
async def test_a_peer_that_falls_silent_is_noticed_within_the_keepalive_time() -> None:
    async with (
        sp.Bus0(listen="tcp://127.0.0.1:0", tcp_keepalive=2) as idle,
        sp.Bus0(listen="tcp://127.0.0.1:0", tcp_keepalive=2) as patient,
    ):
        buses = (idle, patient)
        events = [bus.events() for bus in buses]
        with trio.fail_after(10):
            streams = [await connect_as(bus.url, BUS) for bus in buses]
            for bus in buses:
                await bus.wait_for_peers()
            began = trio.current_time()
            go_deaf(streams[0].socket)
            end = await expect(events[0], sp.EventKind.DETACHED)
            assert trio.current_time() - began < 4
        assert type(end.error) is TimeoutError
        assert "timed out" in end.reason
        assert len(patient.pipes) == 1  # its peer is silent, but there
        for stream in streams:
            await stream.aclose()


@pytest.mark.slow
@linux_only
@network_only
async def test_a_peer_that_vanishes_with_data_on_its_way_is_noticed_in_the_keepalive_time_and_one_that_reads_nothing_stays(
    url: str,
) -> None:
    """While data is in flight, the kernel sends no probes but repeats it for 15 minutes."""
    options: dict[str, Any] = {"listen": url, "tls": server_tls(url), "tcp_keepalive": 2, "linger": 0}
    async with sp.Bus0(**options) as bus, sp.Push0(**options) as patient, sp.Bus0() as gone, sp.Pull0(inbox_limit=1) as busy:
        events = bus.events()
        with trio.fail_after(20):
            for listening, dialing in ((bus, gone), (patient, busy)):
                await dial(dialing, listening.url)
                await listening.wait_for_peers()
            with trio.move_on_after(0.1):
                while True:  # until every buffer is full
                    await patient.send(bytes(100_000))
            with kernel_socket(gone.pipes[0]) as sock:
                go_deaf(sock)
            began = trio.current_time()
            await bus.send(b"are you there?")
            event = await expect(events, sp.EventKind.DETACHED)
            assert 2 <= trio.current_time() - began < 4
        assert isinstance(event.error, sp.PeerSilent)
        assert "the peer has acknowledged nothing for 2" in event.reason
        assert len(patient.pipes) == 1  # its peer has no room, but answers each probe
        assert not bus.pipes


@linux_only
async def test_only_a_pipe_that_has_written_is_looked_at(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def decode(_: bytes) -> tcp_info.TCPInfo:
        looks.append(trio.current_time())
        return tcp_info.TCPInfo(in_flight=len(looks) < 3, repeated=0, heard=0)

    monkeypatch.setattr(tcp_info, "decode", decode)
    async with sp.Bus0(listen="tcp://127.0.0.1:0", tcp_keepalive=80) as bus, sp.Bus0(tcp_keepalive=None) as other:
        await other.dial(bus.url)
        await bus.wait_for_peers()
        for _ in range(2):
            mock_clock.jump(1_000)
            await trio.testing.wait_all_tasks_blocked()
        assert looks == []
        began = trio.current_time()
        for _ in range(5):
            await bus.send(b"hello")
            assert await other.receive() == b"hello"
        for _ in range(10):
            mock_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked()
        assert [round(time - began) for time in looks] == [10, 20, 30]
        await other.send(b"hello")  # it leaves keepalive to the kernel
        assert await bus.receive() == b"hello"
        mock_clock.jump(1_000)
        await trio.testing.wait_all_tasks_blocked()
        assert len(looks) == 3


@pytest.mark.slow
@linux_only
async def test_no_message_is_forgotten_because_it_is_time_to_look(mock_clock: MockClock) -> None:
    """The task that checks also writes to so many pipes that other tasks run in between."""
    async with sp.Bus0(listen="tcp://127.0.0.1:0") as bus:
        streams = [await connect_as(bus.url, BUS) for _ in range(150)]
        await bus.wait_for_peers(150)
        await bus.send(b"is written at once")
        await bus.send(b"is written soon")
        mock_clock.jump(1_000)
        for stream in streams:
            async with stream:
                assert await receive_frame(stream) == b"is written at once"
                assert await receive_frame(stream) == b"is written soon"


@pytest.mark.slow
@linux_only
async def test_a_peer_that_is_gone_without_a_fin_is_noticed_within_the_keepalive_time() -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0", tcp_keepalive=2) as rep:
        events = rep.events()
        with trio.fail_after(10):
            stream = await connect_as(rep.url, REQ)
            await expect(events, sp.EventKind.ATTACHED)
            try:
                # TCP_REPAIR: from now on closing sends nothing.
                stream.socket.setsockopt(socket.IPPROTO_TCP, 19, 1)
            except PermissionError:
                await stream.aclose()
                pytest.skip("only root may put a socket into repair mode")
            await stream.aclose()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(rep.pipes) == 1  # really without a FIN
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, OSError)
            assert event.reason
        assert rep.pipes == ()


@network_only
async def test_a_peer_that_resets_the_connection_ends_its_pipe_with_the_reason(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(5):
            stream = await connect_as(rep.url, REQ)
            await expect(events, sp.EventKind.ATTACHED)
            reset(stream)
            event = await expect(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, ConnectionResetError)
        assert "reset" in event.reason.lower()


# The wire.


@network_only
async def test_a_message_on_the_wire_is_its_length_and_its_body(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        with trio.fail_after(5):
            stream = await connect(bus.url)
            async with stream:
                await stream.send_all(b"\0SP\0\0\x70\0\0")
                assert await receive_exactly(stream, 8) == b"\0SP\0\0\x70\0\0"
                await bus.wait_for_peers()
                await bus.send(b"hello")
                assert await receive_exactly(stream, 13) == b"\0\0\0\0\0\0\0\5hello"
                await bus.send(b"")
                assert await receive_frame(stream) == b""
                await stream.send_all(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\3abc")
                assert [await bus.receive(), await bus.receive()] == [b"", b"abc"]


@network_only
async def test_our_greeting_does_not_wait_for_the_peers(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        with trio.fail_after(5):
            async with await connect(bus.url) as stream:
                assert await receive_exactly(stream, 8) == b"\0SP\0\0\x70\0\0"
