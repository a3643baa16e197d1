"""tls+tcp: URLs, address families, and which bytes cross the network."""

from __future__ import annotations

import errno
import socket

import pytest
import trio

import sp
from sp.address import Address
from tests.transports.ends import authority, client_tls, dial, listen, server_tls
from tests.transports.test_tcp import ask, needs_ipv6, port_of, use_resolver
from tests.transports.wire import until

SCHEMES = pytest.mark.parametrize("scheme", ["tls+tcp", "tls+tcp4", "tls+tcp6"])
LOOPBACK = {"tls+tcp": "127.0.0.1", "tls+tcp4": "127.0.0.1", "tls+tcp6": "[::1]"}


# URLs.


@SCHEMES
def test_an_address_says_that_it_is_encrypted_and_reaches_other_machines(scheme: str) -> None:
    address = Address.parse(f"{scheme}://localhost:0")
    assert address.is_encrypted
    assert address.is_network
    plain = Address.parse(f"{scheme.removeprefix('tls+')}://localhost:0")
    assert not plain.is_encrypted
    assert plain.is_network


@SCHEMES
@pytest.mark.parametrize(("host", "shown"), [("localhost", "localhost"), ("[::1]", "[::1]"), ("*", "*"), ("", "*")])
def test_an_address_with_its_real_port_keeps_its_scheme(scheme: str, host: str, shown: str) -> None:
    address = Address.parse(f"{scheme}://{host}:0").with_port(5555)
    assert address.url == f"{scheme}://{shown}:5555"
    assert address == Address.parse(f"{scheme}://{shown}:5555")


@SCHEMES
@pytest.mark.parametrize("rest", ["*:80", ":80", "127.0.0.1:0"])
async def test_an_address_only_for_listening_cannot_be_dialed(scheme: str, rest: str) -> None:
    url = f"{scheme}://{rest}"
    async with sp.Req0() as req:
        with pytest.raises(
            sp.AddressError, match=rf"can be listened on but not dialed: expected {scheme.replace('+', '[+]')}://"
        ) as caught:
            await dial(req, url)
        assert url in str(caught.value)
        assert req.dialers == ()


@needs_ipv6
@SCHEMES
async def test_a_listener_tells_the_port_that_was_bound_and_is_dialed_by_its_url(scheme: str) -> None:
    async with sp.Rep0() as rep, sp.Req0() as req:
        listeners = [await listen(rep, f"{scheme}://{LOOPBACK[scheme]}:0") for _ in range(2)]
        assert len({port_of(listener.url) for listener in listeners} - {0}) == 2
        with trio.fail_after(5):
            for number, listener in enumerate(listeners):
                assert listener.url == f"{scheme}://{LOOPBACK[scheme]}:{port_of(listener.url)}"
                dialer = await dial(req, listener.url)
                await ask(req, rep, b"%d" % number)
                assert dialer.pipe is not None
                assert dialer.pipe.url == listener.url
                assert dialer.pipe.remote_address == listener.url.removeprefix(f"{scheme}://")
                dialer.close()
                await until(lambda: not req.pipes and not rep.pipes)


# Families and names.


@needs_ipv6
@pytest.mark.parametrize("host", ["*", ""])
async def test_without_a_host_both_families_are_listened_on_with_one_port(host: str) -> None:
    async with sp.Rep0() as rep:
        url = (await listen(rep, f"tls+tcp://{host}:0")).url
        assert url == f"tls+tcp://*:{port_of(url)}"
        with trio.fail_after(5):
            for address in ("127.0.0.1", "[::1]"):
                async with sp.Req0() as req:
                    await dial(req, f"tls+tcp://{address}:{port_of(url)}")
                    await ask(req, rep, address.encode())


@needs_ipv6
@pytest.mark.parametrize(("scheme", "reached", "refused"), [("tls+tcp4", "127.0.0.1", "[::1]"), ("tls+tcp6", "[::1]", "127.0.0.1")])
async def test_one_family_can_be_asked_for(scheme: str, reached: str, refused: str) -> None:
    async with sp.Rep0() as rep, sp.Req0() as req:
        port = port_of((await listen(rep, f"{scheme}://*:0")).url)
        with trio.fail_after(5):
            with pytest.raises(sp.DialError) as caught:
                await dial(req, f"tls+tcp://{refused}:{port}")
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            await dial(req, f"tls+tcp://{reached}:{port}")
            await ask(req, rep, b"hello")


@needs_ipv6
@pytest.mark.parametrize(("scheme", "address"), [("tls+tcp4", "127.0.0.1"), ("tls+tcp6", "[::1]")])
async def test_of_a_name_only_the_family_that_was_asked_for_is_dialed(scheme: str, address: str) -> None:
    use_resolver(["::1", "127.0.0.1"])
    server = authority().server("peer.test")
    async with sp.Rep0(tls=server) as rep, sp.Req0() as req:
        port = port_of((await rep.listen("tls+tcp://*:0")).url)
        with trio.fail_after(5):
            await dial(req, f"{scheme}://peer.test:{port}")
            await ask(req, rep, b"hello")
        assert req.pipes[0].remote_address == f"{address}:{port}"


@needs_ipv6
async def test_a_certificate_is_for_the_name_that_was_dialed_at_whichever_address_it_lives() -> None:
    use_resolver(["::1", "127.0.0.1"])
    async with sp.Rep0() as named, sp.Rep0() as numbered, sp.Req0() as req:
        with trio.fail_after(5):
            # Not at the first address.
            listener = await named.listen("tls+tcp://127.0.0.1:0", tls=authority().server("peer.test"))
            await dial(req, f"tls+tcp://peer.test:{port_of(listener.url)}")
            await ask(req, named, b"hello")
            other = await listen(numbered, "tls+tcp://127.0.0.1:0")
            with pytest.raises(sp.DialError, match=r"IP:127\.0\.0\.1.*not for 'peer\.test'") as caught:
                await dial(req, f"tls+tcp://peer.test:{port_of(other.url)}")
        assert isinstance(caught.value.__cause__, sp.AuthenticationError)


# Beside others.


async def test_a_port_has_one_listener_with_tls_or_without() -> None:
    async with sp.Rep0() as rep, sp.Rep0() as other:
        for first, second in (("tls+tcp", "tcp"), ("tcp", "tls+tcp")):
            listener = await listen(rep, f"{first}://127.0.0.1:0")
            taken = f"{second}://127.0.0.1:{port_of(listener.url)}"
            with pytest.raises(OSError, match=r"(?i)address.* in use") as caught:
                await listen(other, taken)
            assert caught.value.errno == errno.EADDRINUSE
            assert taken in str(caught.value)


async def test_one_socket_listens_and_dials_with_tls_and_without_side_by_side(tmp_path: object) -> None:
    urls = ["tls+tcp://127.0.0.1:0", "tcp://127.0.0.1:0", f"ipc://{tmp_path}/s", "inproc://beside-tls"]
    async with sp.Bus0() as listening, sp.Bus0() as dialing:
        with trio.fail_after(5):
            for url in urls:
                await dial(dialing, (await listen(listening, url)).url)
            await listening.wait_for_peers(len(urls))
            await dialing.send(b"to all")
            assert [await listening.receive() for _ in urls] == [b"to all"] * len(urls)
        assert [pipe.tls is not None for pipe in dialing.pipes] == [True, False, False, False]


async def test_a_dialer_and_a_listener_that_were_given_none_use_the_tls_of_their_socket() -> None:
    url = "tls+tcp://127.0.0.1:0"
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(tls=client_tls(url)) as req:
        with trio.fail_after(5):
            again = await rep.listen(url)
            for listener in rep.listeners:
                dialer = await req.dial(listener.url)
                await ask(req, rep, b"hello")
                dialer.close()
                await until(lambda: not req.pipes and not rep.pipes)
        assert again in rep.listeners


# The network.


class Tap:
    """A relay that records the bytes that pass."""

    def __init__(self, port: int) -> None:
        self.heard = {"up": bytearray(), "down": bytearray()}
        self._port = port

    async def serve(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self._port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, client, server, self.heard["up"])
            nursery.start_soon(self._carry, server, client, self.heard["down"])

    async def _carry(self, source: trio.SocketStream, target: trio.SocketStream, heard: bytearray) -> None:
        async for data in source:
            heard += data
            await target.send_all(data)
        await target.send_eof()


@pytest.mark.parametrize("scheme", ["tls+tcp", "tcp"])
async def test_nothing_that_is_said_can_be_read_on_the_way(scheme: str) -> None:
    async with sp.Rep0() as rep, trio.open_nursery() as nursery:
        tap = Tap(port_of((await listen(rep, f"{scheme}://127.0.0.1:0")).url))
        (tapped,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, tap.serve, [tapped])
        with trio.fail_after(5):
            async with sp.Req0() as req:
                await dial(req, f"{scheme}://127.0.0.1:{tapped.socket.getsockname()[1]}")
                await ask(req, rep, b"a secret")
        nursery.cancel_scope.cancel()
    for heard in tap.heard.values():
        assert heard
        for said in (b"a secret", b"\0SP\0"):
            assert (said in heard) == (scheme == "tcp")  # so the relay does record


@SCHEMES
async def test_a_dial_without_a_listener_fails_with_the_same_cause_as_over_tcp(scheme: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, but not listening
        async with sp.Req0() as req:
            with trio.fail_after(5), pytest.raises(sp.DialError, match=r"(?i)refused|name") as caught:
                await dial(req, f"{scheme}://127.0.0.1:{reserved.getsockname()[1]}")
        # The name has no address of the other family.
        assert type(caught.value.__cause__) is (socket.gaierror if scheme == "tls+tcp6" else ConnectionRefusedError)
