"""The other proxies of docs/proxies.md: each runs with the file that the guide shows."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

import sp
from interop.partners import REDIAL, body_of, next_event, port_of
from interop.proxies import Proxy, client_at, name_of, proxy
from tests.tls.authority import Authority

CLIENT: Final = "127.0.0.2"
"""The address of clients, to distinguish them from the proxies at 127.0.0.1."""
FORGED: Final = {"X-Forwarded-For": "192.0.2.66, 192.0.2.67", "X-Forwarded-Proto": "http", "Forwarded": "for=192.0.2.66;proto=http"}
"""What a client claims that is not so."""
DIRECT: Final = sp.WSClientConfig(proxy=None)


@attrs.frozen
class Recipe:
    """One file, and what its proxy can do."""

    file: str
    service: str = "127.0.0.1:{}"
    """How it writes our address; the braces stand for the port."""
    inside: str = "ws"
    proxy_header: int | None = None
    """The version of its PROXY header.  None: it tells the client's address in an HTTP header."""
    idle: tuple[str, str] | None = None
    """The text that limits how long both sides may be silent, and the same for one second."""
    strips: bool = False
    """Whether it removes ``/app`` from the path."""
    tls_by: str | None = None
    """The file of the program that ends TLS in front of it."""

    def __str__(self) -> str:
        return f"{name_of(self.file)}-{self.inside}"

    @asynccontextmanager
    async def running(self, directory: Path, service: Any, *, short: bool = False) -> AsyncIterator[Proxy]:
        """Run the proxy in front of *service*, our socket.

        With *short*, it ends what is idle for three seconds.
        """
        changes = {self.service.format(8080): self.service.format(port_of(service.listeners[0].url))}
        if short and self.idle is not None:
            changes |= [self.idle]
        async with proxy(self.file, directory, changes) as last:
            if self.tls_by is None:
                yield last
                return
            async with proxy(self.tls_by, directory, {"[127.0.0.1]:8080": f"[127.0.0.1]:{last.port}"}) as first:
                yield first


HITCH: Final = "hitch-tls.conf"
RECIPES: Final = (
    Recipe("apache2-wss.conf", idle=("Timeout 60", "Timeout 3"), strips=True),
    Recipe("caddy-wss.Caddyfile", strips=True),
    Recipe("envoy-wss.yaml", "port_value: {}", idle=("idle_timeout: 60s", "idle_timeout: 3s"), strips=True),
    Recipe(HITCH, "[127.0.0.1]:{}", proxy_header=2),
    Recipe(HITCH, "[127.0.0.1]:{}", "tcp", proxy_header=2),
    Recipe("stunnel-tls.conf", proxy_header=1, idle=("TIMEOUTidle = 60", "TIMEOUTidle = 3")),
    Recipe("stunnel-tls.conf", inside="tcp", proxy_header=1),
    Recipe("traffic_server-records.config", idle=("no_activity_timeout INT 60", "no_activity_timeout INT 3"), strips=True),
    Recipe("varnishd-wss.vcl", '.port = "{}"', idle=("pipe_timeout=60", "pipe_timeout=3"), tls_by=HITCH),
)


def _marks(recipe: Recipe) -> list[pytest.MarkDecorator]:
    if recipe.file.startswith("envoy"):
        return [pytest.mark.skipif(shutil.which("envoy") is None, reason="envoy is not installed, and Debian has no package of it")]
    return [pytest.mark.needs(name_of(file)) for file in (recipe.file, recipe.tls_by) if file is not None]


def each(*recipes: Recipe) -> pytest.MarkDecorator:
    """Run a test with each of *recipes* whose programs are there."""
    return pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=_marks(recipe), id=str(recipe)) for recipe in recipes])


@pytest.fixture
def directory(tmp_path: Path, authority: Authority) -> Path:
    """What the files look for in /etc/sp."""
    (tmp_path / "server.pem").write_bytes(authority.issue("localhost", "127.0.0.1"))
    return tmp_path


async def echo(rep: sp.Rep0) -> None:
    async for request in rep.requests():
        await request.reply(request.body)


def options_for(recipe: Recipe) -> dict[str, Any]:
    """Return how a service listens behind *recipe*."""
    if recipe.proxy_header is not None:
        return {"proxy_protocol": True}
    return {"ws": sp.WSServerConfig(trusted_proxies="127.0.0.1")}


@each(*RECIPES)
async def test_a_request_is_answered_and_the_service_knows_who_asks(recipe: Recipe, directory: Path, authority: Authority) -> None:
    over_ws = recipe.inside == "ws"
    async with (
        sp.Rep0(listen=f"{recipe.inside}://127.0.0.1:0", **options_for(recipe)) as rep,
        recipe.running(directory, rep) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(tls=authority.client(), ws=sp.WSClientConfig(proxy=None, headers=FORGED) if over_ws else None) as req,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, rep)
        await req.dial(f"wss://127.0.0.1:{port}/?to=all&from=7" if over_ws else f"tls+tcp://127.0.0.1:{port}")
        for size in (0, 125, 65_536, 900_000):
            assert await req.request(body_of(size)) == body_of(size)
        (pipe,) = rep.pipes
        assert pipe.proxy_address is not None
        assert pipe.proxy_address.startswith("127.0.0.1:")
        if over_ws:
            assert pipe.http is not None
            assert (pipe.http.path, pipe.http.query) == ("/", "to=all&from=7")
        if recipe.proxy_header is None:
            assert pipe.http is not None
            assert (pipe.remote_address, pipe.http.scheme) == (CLIENT, "https")
            assert "192.0.2." not in str(pipe.http.headers.raw)
            assert "Forwarded" not in pipe.http.headers
        else:
            assert pipe.remote_address.startswith(f"{CLIENT}:")
            assert pipe.proxy is not None
            assert (pipe.proxy.version, pipe.proxy.source) == (recipe.proxy_header, pipe.remote_address)
            assert (pipe.proxy.ssl is not None) == (recipe.proxy_header == 2)
        nursery.cancel_scope.cancel()


@each(Recipe("nginx-wss.conf"), Recipe("haproxy-wss.cfg"), *(recipe for recipe in RECIPES if recipe.proxy_header is None))
async def test_a_client_cannot_take_out_the_headers_of_the_proxy(recipe: Recipe, directory: Path, authority: Authority) -> None:
    """A proxy removes every header that the client's ``Connection`` names (RFC 9110, 7.6.1).

    It must not remove those that it sets itself.
    """
    context = ssl.create_default_context(cadata=authority.pem.decode())
    async with (
        sp.Rep0(listen="ws://127.0.0.1:0", **options_for(recipe)) as rep,
        recipe.running(directory, rep) as running,
        client_at(CLIENT, running.port) as port,
    ):
        events = rep.events()
        for name in ("X-Forwarded-For", "X-Forwarded-Proto"):
            async with await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context) as stream:
                await stream.send_all(
                    f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, {name}\r\n"
                    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                    "Sec-WebSocket-Protocol: rep.sp.nanomsg.org\r\n\r\n".encode()
                )
                status = (await stream.receive_some()).partition(b"\r\n")[0]
                if recipe.file.startswith("varnishd") and name == "X-Forwarded-For":
                    assert status == b"HTTP/1.1 400 Bad Request"
                    continue
                assert status.startswith(b"HTTP/1.1 101 ")
                event = await next_event(events, sp.EventKind.ATTACHED)
                assert event.pipe is not None
                assert event.pipe.http is not None
                assert (event.pipe.remote_address, event.pipe.http.scheme) == (CLIENT, "https")


@each(*(recipe for recipe in RECIPES if recipe.strips))
async def test_a_path_is_kept_or_stripped(recipe: Recipe, directory: Path, authority: Authority) -> None:
    async with sp.Rep0(listen="ws://127.0.0.1:0/questions", **options_for(recipe)) as rep:
        await rep.listen(f"ws://127.0.0.1:{port_of(rep.listeners[0].url)}/sp/questions", **options_for(recipe))
        async with recipe.running(directory, rep) as running, sp.Req0(tls=authority.client(), ws=DIRECT) as req:
            for outside, inside in (("/sp/questions", "/sp/questions"), ("/app/questions", "/questions")):
                dialer = await req.dial(f"wss://127.0.0.1:{running.port}{outside}?a=%2F&b")
                await req.send(b"question")
                async for request in rep.requests():
                    assert request.pipe is not None
                    http = request.pipe.http
                    assert http is not None
                    assert (http.path, http.query) == (inside, "a=%2F&b")
                    await request.reply(b"answer")
                    break
                assert await req.receive() == b"answer"
                dialer.close()
            with pytest.raises(sp.DialError, match="404 Not Found: 'no socket listens here'"):
                await req.dial(f"wss://127.0.0.1:{running.port}/elsewhere")


async def be_lost(silent: sp.Req0, url: str) -> None:
    """Dial *url* and say nothing until the connection is lost."""
    events = silent.events()
    await silent.dial(url)
    event = await next_event(events, sp.EventKind.DETACHED)
    assert isinstance(event.error, (sp.PeerClosed, OSError))


@each(*(recipe for recipe in RECIPES if recipe.idle is not None))
async def test_pings_keep_an_idle_connection_and_without_them_the_proxy_ends_it(
    recipe: Recipe, directory: Path, authority: Authority
) -> None:
    ping = sp.WSClientConfig(proxy=None, ping_interval=0.2, ping_timeout=5.0)
    none = sp.WSClientConfig(proxy=None, ping_interval=None)
    own = sp.WSServerConfig(ping_interval=None, trusted_proxies=() if recipe.proxy_header else "127.0.0.1")
    async with (
        sp.Rep0(listen="ws://127.0.0.1:0", ws=own, proxy_protocol=recipe.proxy_header is not None) as rep,
        recipe.running(directory, rep, short=True) as running,
        sp.Req0(tls=authority.client(), ws=ping) as pinged,
        sp.Req0(tls=authority.client(), ws=none, **REDIAL) as silent,
    ):
        pipe = (await pinged.dial(f"wss://127.0.0.1:{running.port}")).pipe
        # The other one is the clock: each time it is lost, the proxy has found it idle for as long
        # as it allows.
        await be_lost(silent, f"wss://127.0.0.1:{running.port}")
        assert pinged.pipes == (pipe,)
        await pinged.send(b"still there?")
        assert await rep.receive() == b"still there?"


@pytest.mark.needs("hitch")
async def test_hitch_tells_whether_the_client_has_a_certificate_but_not_its_name(directory: Path, authority: Authority) -> None:
    (directory / "ca.pem").write_bytes(authority.pem)
    verify = {"write-proxy-v2 = on": f'write-proxy-v2 = on\nclient-verify = optional\nclient-verify-ca = "{directory}/ca.pem"'}
    async with sp.Rep0(listen="tcp://127.0.0.1:0", proxy_protocol=True) as rep:
        changes = {"[127.0.0.1]:8080": f"[127.0.0.1]:{port_of(rep.listeners[0].url)}", **verify}
        async with proxy(HITCH, directory, changes) as running, sp.Req0() as req:
            events = rep.events()
            for certificate in (None, authority.issue("client.example", subject="client 7")):
                await req.dial(f"tls+tcp://127.0.0.1:{running.port}", tls=authority.client(certificate=certificate))
                event = await next_event(events, sp.EventKind.ATTACHED)
                assert event.pipe is not None
                assert event.pipe.proxy is not None
                seen = event.pipe.proxy.ssl
                assert seen is not None
                shown = certificate is not None
                assert (seen.has_certificate, seen.verified, seen.common_name) == (shown, shown, "")


@pytest.mark.needs("stunnel")
async def test_a_tunnel_overwrites_no_header_so_a_client_behind_it_is_believed_if_the_tunnel_is(
    directory: Path, authority: Authority
) -> None:
    """Why the guide says that a tunnel must not be in ``trusted_proxies``."""
    forging = sp.WSClientConfig(proxy=None, headers=FORGED)
    for trusted, address in (("127.0.0.1", "192.0.2.67"), ("192.0.2.1", "127.0.0.1:")):
        async with sp.Rep0(listen="ws://127.0.0.1:0", ws=sp.WSServerConfig(trusted_proxies=trusted)) as rep:
            changes = {"127.0.0.1:8080": f"127.0.0.1:{port_of(rep.listeners[0].url)}", "protocol = proxy": ""}
            async with proxy("stunnel-tls.conf", directory, changes) as running, sp.Req0(tls=authority.client(), ws=forging) as req:
                await req.dial(f"wss://127.0.0.1:{running.port}")
                await rep.wait_for_peers()
                assert rep.pipes[0].remote_address.startswith(address)


# Out through a proxy.


@pytest.mark.needs("squid")
async def test_a_dialer_gets_out_through_squid_where_squid_lets_it(directory: Path, authority: Authority) -> None:
    async with (
        sp.Rep0(listen="wss://127.0.0.1:0", tls=authority.server()) as rep,
        sp.Rep0(listen="wss://127.0.0.1:0", tls=authority.server()) as elsewhere,
        proxy("squid-connect.conf", directory, {"port 443": f"port {port_of(rep.listeners[0].url)}"}) as running,
        sp.Req0(tls=authority.client(), ws=sp.WSClientConfig(proxy=f"http://127.0.0.1:{running.port}"), **REDIAL) as req,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, rep)
        # Squid says that it accepts connections shortly before it does.
        await req.dial(rep.listeners[0].url, wait=False)
        assert await req.request(body_of(900_000)) == body_of(900_000)
        (pipe,) = req.pipes
        assert pipe.proxy_address == f"127.0.0.1:{running.port}"
        with pytest.raises(sp.DialError, match=f"the proxy 127.0.0.1:{running.port} answered 403 Forbidden"):
            await req.dial(elsewhere.listeners[0].url)
        nursery.cancel_scope.cancel()


@pytest.mark.needs("squid")
async def test_pings_keep_an_idle_connection_through_squid(directory: Path, authority: Authority) -> None:
    no_pings: dict[str, Any] = {"ping_interval": None}
    async with sp.Rep0(listen="wss://127.0.0.1:0", tls=authority.server(), ws=sp.WSServerConfig(**no_pings)) as rep:
        url = rep.listeners[0].url
        changes = {"port 443": f"port {port_of(url)}", "read_timeout 60 seconds": "read_timeout 3 seconds"}
        async with proxy("squid-connect.conf", directory, changes) as running:
            way: dict[str, Any] = {"proxy": f"http://127.0.0.1:{running.port}"}
            pings: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 5.0}
            async with (
                sp.Req0(tls=authority.client(), ws=sp.WSClientConfig(**way, **pings), **REDIAL) as pinged,
                sp.Req0(tls=authority.client(), ws=sp.WSClientConfig(**way, **no_pings), **REDIAL) as silent,
            ):
                await pinged.dial(url, wait=False)
                await pinged.wait_for_peers()
                (pipe,) = pinged.pipes
                await be_lost(silent, url)
                assert pinged.pipes == (pipe,)
                await pinged.send(b"still there?")
                assert await rep.receive() == b"still there?"
