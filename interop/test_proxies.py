"""Behind nginx and HAProxy, with the files of the guide (docs/proxies.md)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import trio
from pynng import TLSConfig

import sp
from interop.partners import REDIAL, body_of, next_event, open_partner
from interop.proxies import Proxy, client_at, name_of, need, proxy
from tests.tls.authority import Authority

pytestmark = pytest.mark.libnng

CLIENT: Final = "127.0.0.2"
"""The address of clients, to distinguish them from the proxies at 127.0.0.1."""
BEHIND: Final = sp.WSServerConfig(trusted_proxies="127.0.0.1")
DIRECT: Final = sp.WSClientConfig(proxy=None)
"""For a dialer, whatever the environment says of proxies."""
ANY: Final = "ws://127.0.0.1:0"
SHORT: Final[Mapping[str, str]] = {"60s": "3s"}
"""The time after which the proxies end what is idle."""
PING: Final = 0.2


def each_file(*files: str) -> pytest.MarkDecorator:
    """Run a test with each of *files* whose program is there."""
    return pytest.mark.parametrize("file", [pytest.param(file, marks=pytest.mark.needs(name_of(file))) for file in files])


each_wss = each_file("nginx-wss.conf", "haproxy-wss.cfg")
each_paths = each_file("nginx-paths.conf", "haproxy-paths.cfg")
each_balance = each_file("nginx-balance.conf", "haproxy-balance.cfg")
each_pass_through = each_file("nginx-pass-through.conf", "haproxy-pass-through.cfg")


@pytest.fixture
def directory(tmp_path: Path, authority: Authority) -> Path:
    """What the files look for in /etc/sp."""
    (tmp_path / "server.pem").write_bytes(authority.issue("localhost", "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return tmp_path


@pytest.fixture
def tls(authority: Authority) -> sp.TLSClientConfig:
    return authority.client()


def place_of(url: str) -> str:
    """Return host and port of *url*."""
    return url.partition("://")[2].partition("/")[0]


@asynccontextmanager
async def in_front(file: str, directory: Path, *services: Any, **changes: str) -> AsyncIterator[Proxy]:
    """The proxy of *file*, in front of *services*, our sockets; *changes* are made to the file as
    well.
    """
    need(file)
    places = ["127.0.0.1:8081", "127.0.0.1:8082"] if len(services) > 1 else ["127.0.0.1:8443" if "pass" in file else "127.0.0.1:8080"]
    own = {place: place_of(service.listeners[0].url) for place, service in zip(places, services, strict=True)}
    async with proxy(file, directory, {**own, **changes}) as running:
        yield running


async def echo(rep: sp.Rep0) -> None:
    async for request in rep.requests():
        await request.reply(request.body)


def sending(headers: Mapping[str, str]) -> sp.WSClientConfig:
    """Return the configuration of a client that sends *headers*."""
    return sp.WSClientConfig(proxy=None, headers=headers)


# TLS ends at the proxy.


@each_wss
async def test_questions_and_answers_of_every_size_pass(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND) as rep,
        in_front(file, directory, rep) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
        trio.open_nursery() as nursery,
    ):
        await req.dial(f"wss://127.0.0.1:{running.port}")
        nursery.start_soon(echo, rep)
        for size in (0, 1, 125, 126, 65_535, 65_536, 900_000):
            assert await req.request(body_of(size)) == body_of(size)
        assert len(rep.pipes) == 1
        nursery.cancel_scope.cancel()


@each_wss
async def test_what_is_published_comes_through_in_order(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with (
        sp.Pub0(listen=ANY, ws=BEHIND) as pub,
        in_front(file, directory, pub) as running,
        sp.Sub0(topics=b"", tls=tls, ws=DIRECT) as sub,
    ):
        await sub.dial(f"wss://127.0.0.1:{running.port}")
        await pub.wait_for_peers()
        for start in range(0, 1000, 100):
            batch = [b"%d" % n for n in range(start, start + 100)]
            await pub.send_many(batch)
            assert [await sub.receive() for _ in batch] == batch


@each_wss
async def test_libnng_asks_and_is_answered(file: str, directory: Path, authority: Authority) -> None:
    client = TLSConfig(TLSConfig.MODE_CLIENT, server_name="127.0.0.1", ca_string=authority.pem.decode())
    with open_partner("Req0", tls_config=client) as theirs:
        async with (
            sp.Rep0(listen=ANY, ws=BEHIND) as rep,
            in_front(file, directory, rep) as running,
            trio.open_nursery() as nursery,
        ):
            theirs.dial(f"wss://127.0.0.1:{running.port}/", block=False)
            nursery.start_soon(echo, rep)
            for size in (0, 1, 65_536, 900_000):
                await theirs.asend(body_of(size))
                assert await theirs.arecv() == body_of(size)
            nursery.cancel_scope.cancel()


@each_wss
async def test_we_ask_libnng_and_are_answered(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    with open_partner("Rep0") as theirs:
        place = str(theirs.listen(f"{ANY}/").local_address)
        async with (
            proxy(file, directory, {"127.0.0.1:8080": place}) as running,
            sp.Req0(tls=tls, ws=DIRECT) as req,
        ):
            await req.dial(f"wss://127.0.0.1:{running.port}/")
            await req.send(body_of(900_000))
            assert await theirs.arecv() == body_of(900_000)
            await theirs.asend(b"answer")
            assert await req.receive() == b"answer"


@each_wss
async def test_the_client_s_address_and_scheme_are_known_and_the_proxy_s_address_as_well(
    file: str, directory: Path, tls: sp.TLSClientConfig
) -> None:
    async with (
        sp.Rep0(listen=f"{ANY}/questions", ws=BEHIND) as rep,
        in_front(file, directory, rep) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(tls=tls, ws=sending({"Authorization": "Bearer 7"})) as req,
    ):
        await req.dial(f"wss://127.0.0.1:{port}/questions?to=all&from=7")
        await rep.wait_for_peers()
        (pipe,) = rep.pipes
        assert pipe.remote_address == CLIENT
        assert pipe.proxy_address is not None
        assert pipe.proxy_address.startswith("127.0.0.1:")
        assert pipe.http is not None
        assert (pipe.http.scheme, pipe.http.via_trusted_proxy) == ("https", True)
        assert (pipe.http.path, pipe.http.query) == ("/questions", "to=all&from=7")
        assert pipe.http.headers["Authorization"] == "Bearer 7"
        assert pipe.http.headers["Host"] == f"127.0.0.1:{port}"


@each_wss
async def test_a_proxy_that_is_not_trusted_is_itself_the_peer(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with (
        sp.Rep0(listen=ANY, ws=sp.WSServerConfig(trusted_proxies="192.0.2.0/24")) as rep,
        in_front(file, directory, rep) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        await req.dial(f"wss://127.0.0.1:{port}")
        await rep.wait_for_peers()
        (pipe,) = rep.pipes
        assert pipe.remote_address.startswith("127.0.0.1:")
        assert pipe.proxy_address is None
        assert pipe.http is not None
        assert (pipe.http.scheme, pipe.http.via_trusted_proxy) == ("http", False)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
@each_wss
async def test_what_a_client_says_of_its_address_is_not_believed(
    file: str, header: Literal["X-Forwarded-For", "Forwarded"], directory: Path, tls: sp.TLSClientConfig
) -> None:
    forged = {"X-Forwarded-For": "192.0.2.66, 192.0.2.67", "X-Forwarded-Proto": "http", "Forwarded": "for=192.0.2.66;proto=http"}
    async with (
        sp.Rep0(listen=ANY, ws=sp.WSServerConfig(trusted_proxies="127.0.0.1", forwarded_header=header)) as rep,
        in_front(file, directory, rep) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(tls=tls, ws=sending(forged)) as req,
    ):
        await req.dial(f"wss://127.0.0.1:{port}")
        await rep.wait_for_peers()
        (pipe,) = rep.pipes
        assert pipe.http is not None
        assert "192.0.2." not in str(pipe.http.headers.raw)
        assert "Forwarded" not in pipe.http.headers
        if header == "X-Forwarded-For":
            assert (pipe.remote_address, pipe.http.scheme) == (CLIENT, "https")
        else:
            assert pipe.remote_address.startswith("127.0.0.1:"), "these proxies do not set that header, so nobody has said anything"


def only_friends(pipe: sp.Pipe) -> bool | sp.HTTPResponse:
    assert pipe.http is not None
    return pipe.http.query == "friend" or sp.HTTPResponse(402, "first pay\nthen ask\n", {"X-Price": "7"})


@each_wss
async def test_a_refusal_comes_through_with_its_status_its_headers_and_its_body(
    file: str, directory: Path, tls: sp.TLSClientConfig
) -> None:
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND, authorize=only_friends) as rep,
        in_front(file, directory, rep) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        with pytest.raises(sp.DialError) as caught:
            await req.dial(f"wss://127.0.0.1:{running.port}")
        cause = caught.value.__cause__
        assert isinstance(cause, sp.UpgradeRefused)
        assert (cause.response.status, cause.response.body, cause.response.headers["X-Price"]) == (402, b"first pay\nthen ask\n", "7")
        assert "the server answered 402 Payment Required: 'first pay'" in str(cause)
        await req.dial(f"wss://127.0.0.1:{running.port}/?friend")


@pytest.mark.parametrize("status", [401, 429, 503])
@each_wss
async def test_a_refusal_of_the_proxys_own_is_reported_with_its_words(
    file: str, status: int, directory: Path, tls: sp.TLSClientConfig
) -> None:
    changes = {
        "nginx": {
            "proxy_pass         http://service;": f'default_type text/plain; add_header Retry-After 7 always; return {status} "not now";',
            "upstream service {": "upstream unused {",
        },
        "haproxy": {
            "default_backend service": f'http-request return status {status} content-type text/plain string "not now" hdr Retry-After 7'
        },
    }[name_of(file)]
    async with sp.Rep0(listen=ANY) as rep, in_front(file, directory, rep, **changes) as running, sp.Req0(tls=tls, ws=DIRECT) as req:
        with pytest.raises(sp.DialError) as caught:
            await req.dial(f"wss://127.0.0.1:{running.port}")
        cause = caught.value.__cause__
        assert isinstance(cause, sp.UpgradeRefused)
        assert (cause.response.status, cause.response.body, cause.response.headers["Retry-After"]) == (status, b"not now", "7")
        assert cause.permanent is (status == 401)


@each_file("haproxy-wss.cfg")
async def test_an_early_hint_before_the_agreement_is_passed_over(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    hint = {"default_backend service": 'http-request early-hint Link "</style.css>; rel=preload"\n    default_backend service'}
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND) as rep,
        in_front(file, directory, rep, **hint) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, rep)
        await req.dial(f"wss://127.0.0.1:{running.port}")
        assert await req.request(b"question") == b"question"
        assert req.pipes[0].http is not None
        assert "Link" not in req.pipes[0].http.response_headers
        nursery.cancel_scope.cancel()


@each_wss
async def test_a_page_of_another_origin_is_refused(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    http = sp.WSServerConfig(trusted_proxies="127.0.0.1", origins="https://app.example")
    async with sp.Rep0(listen=ANY, ws=http) as rep, in_front(file, directory, rep) as running, sp.Req0(tls=tls) as req:
        with pytest.raises(sp.DialError, match="403 Forbidden"):
            await req.dial(f"wss://127.0.0.1:{running.port}", ws=sending({"Origin": "https://evil.example"}))
        await req.dial(f"wss://127.0.0.1:{running.port}", ws=sending({"Origin": "https://app.example"}))


@each_wss
async def test_a_peer_of_the_wrong_protocol_gets_an_error_with_its_name(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with (
        sp.Pub0(listen=ANY, ws=BEHIND) as pub,
        in_front(file, directory, pub) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        with pytest.raises(sp.DialError, match="the peer is PUB, expected REP"):
            await req.dial(f"wss://127.0.0.1:{running.port}")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("proxy_http_version 1.1;", "505 HTTP Version Not Supported: 'not a WebSocket request: unsupported HTTP version: HTTP/1.0'"),
        ("proxy_set_header   Upgrade    $http_upgrade;", "426 Upgrade Required: 'not a WebSocket request: missing Upgrade header'"),
        ("proxy_set_header   Connection $connection_upgrade;", "426 Upgrade Required: 'not a WebSocket request: invalid Connection header"),
    ],
    ids=["version", "Upgrade", "Connection"],
)
@each_file("nginx-wss.conf")
async def test_a_line_that_a_proxy_lacks_shows_in_the_answer(
    file: str, line: str, answer: str, directory: Path, tls: sp.TLSClientConfig
) -> None:
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND) as rep,
        in_front(file, directory, rep, **{line: ""}) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        with pytest.raises(sp.DialError, match=f"the server answered {answer}"):
            await req.dial(f"wss://127.0.0.1:{running.port}")


@each_wss
async def test_a_service_that_is_not_there_is_a_refusal_by_the_proxy(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    at_once = {"timeout connect 5s": "timeout connect 5s\n    retries 0"} if "haproxy" in file else {}
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND) as rep,
        in_front(file, directory, rep, **at_once) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        rep.listeners[0].close()
        with pytest.raises(sp.DialError) as caught:
            await req.dial(f"wss://127.0.0.1:{running.port}")
        cause = caught.value.__cause__
        assert isinstance(cause, sp.UpgradeRefused)
        assert cause.response.status == (502 if running.name == "nginx" else 503)


@each_wss
async def test_a_client_learns_that_the_service_goes_away(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND) as rep,
        in_front(file, directory, rep) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        await req.dial(f"wss://127.0.0.1:{running.port}")
        await rep.wait_for_peers()
        events = req.events()
        await rep.listeners[0].drain()
        event = await next_event(events, sp.EventKind.DETACHED)
        assert "1001 (going away)" in event.reason


# Paths, and a unix socket.


@each_paths
async def test_a_path_is_kept_or_stripped(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with sp.Rep0(listen=f"{ANY}/sp/questions", ws=BEHIND) as kept, sp.Rep0(ws=BEHIND) as stripped:
        await stripped.listen(f"ws://{place_of(kept.listeners[0].url)}/questions")
        async with in_front(file, directory, kept) as running, sp.Req0(tls=tls, ws=DIRECT) as req:
            for outside, rep, inside in (("/sp/questions", kept, "/sp/questions"), ("/app/questions", stripped, "/questions")):
                dialer = await req.dial(f"wss://127.0.0.1:{running.port}{outside}?a=%2F&b")
                await rep.wait_for_peers()
                (pipe,) = rep.pipes
                assert pipe.http is not None
                assert (pipe.http.path, pipe.http.query) == (inside, "a=%2F&b")
                await req.send(b"question")
                assert await rep.receive() == b"question"
                await rep.send(b"answer")
                assert await req.receive() == b"answer"
                dialer.close()
            with pytest.raises(sp.DialError, match="404"):
                await req.dial(f"wss://127.0.0.1:{running.port}/elsewhere")


@each_file("nginx-unix.conf", "haproxy-unix.cfg")
async def test_a_service_at_a_unix_socket_knows_its_clients_addresses(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    path = directory / "service.sock"
    async with (
        sp.Rep0(listen=f"ws+unix://{path}", ws=sp.WSServerConfig(trusted_proxies="unix")) as rep,
        proxy(file, directory, {"/run/sp/service.sock": str(path)}) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(tls=tls, ws=sending({"X-Forwarded-For": "192.0.2.66"})) as req,
        trio.open_nursery() as nursery,
    ):
        await req.dial(f"wss://127.0.0.1:{port}")
        nursery.start_soon(echo, rep)
        assert await req.request(body_of(900_000)) == body_of(900_000)
        (pipe,) = rep.pipes
        assert pipe.remote_address == CLIENT
        assert pipe.proxy_address == f"ws+unix://{path}"
        assert pipe.http is not None
        assert (pipe.http.scheme, pipe.http.via_trusted_proxy) == ("https", True)
        nursery.cancel_scope.cancel()


# Certificates of clients, seen by the proxy.


@each_file("nginx-client-certificate.conf", "haproxy-client-certificate.cfg")
async def test_the_name_in_a_client_s_certificate_comes_in_a_header_that_no_client_can_forge(
    file: str, directory: Path, authority: Authority
) -> None:
    forged = {"X-SSL-Client-Verify": "SUCCESS", "X-SSL-Client-DN": "CN=admin"}
    if "haproxy" in file:
        forged["X-SSL-Client-CN"] = "admin"
    async with sp.Rep0(listen=ANY, ws=BEHIND) as rep, in_front(file, directory, rep) as running, sp.Req0(ws=sending(forged)) as req:
        seen: list[dict[str, str]] = []
        for own in (None, authority.issue("client.example", subject="client 7")):
            dialer = await req.dial(f"wss://127.0.0.1:{running.port}", tls=authority.client(certificate=own))
            await rep.wait_for_peers()
            (pipe,) = rep.pipes
            assert pipe.http is not None
            assert pipe.http.via_trusted_proxy
            seen.append({name: value for name, value in pipe.http.headers.items() if "ssl" in name})
            events = rep.events()
            dialer.close()
            await next_event(events, sp.EventKind.DETACHED)
        without, with_one = seen
        if running.name == "nginx":
            assert without == {"x-ssl-client-verify": "NONE"}
            assert with_one["x-ssl-client-verify"] == "SUCCESS"
            assert with_one["x-ssl-client-dn"].startswith("CN=client 7,")
        else:
            assert without == {}
            assert with_one == {"x-ssl-client-cn": "client 7"}


@each_file("nginx-client-certificate.conf", "haproxy-client-certificate.cfg")
async def test_a_certificate_of_a_stranger_comes_nowhere(file: str, directory: Path, authority: Authority, stranger: Authority) -> None:
    tls = authority.client(certificate=stranger.issue("client.example"))
    async with (
        sp.Rep0(listen=ANY, ws=BEHIND) as rep,
        in_front(file, directory, rep) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        with pytest.raises(sp.DialError, match="400" if running.name == "nginx" else "unknown ca"):
            await req.dial(f"wss://127.0.0.1:{running.port}")
        assert not rep.pipes


@pytest.mark.parametrize(("inside", "outside"), [("ws", "wss"), ("tcp", "tls+tcp")])
@each_file("haproxy-tcp-tls.cfg")
async def test_a_proxy_header_tells_the_client_s_certificate(
    file: str, inside: str, outside: str, directory: Path, authority: Authority
) -> None:
    async with (
        sp.Rep0(listen=f"{inside}://127.0.0.1:0", proxy_protocol=True) as rep,
        in_front(file, directory, rep) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(ws=DIRECT if inside == "ws" else None) as req,
    ):
        for own in (None, authority.issue("client.example", subject="client 7")):
            dialer = await req.dial(f"{outside}://127.0.0.1:{port}", tls=authority.client(certificate=own, maximum_version="TLSv1.2"))
            await rep.wait_for_peers()
            (pipe,) = rep.pipes
            assert pipe.remote_address.startswith(f"{CLIENT}:")
            assert pipe.proxy_address is not None
            assert pipe.proxy_address.startswith("127.0.0.1:")
            assert pipe.proxy is not None
            assert (pipe.proxy.version, pipe.proxy.source) == (2, pipe.remote_address)
            assert pipe.proxy.destination == f"127.0.0.1:{running.port}"
            ssl = pipe.proxy.ssl
            assert ssl is not None
            assert ssl.version == "TLSv1.2"
            if own is None:
                assert (ssl.has_certificate, ssl.verified, ssl.common_name) == (False, False, "")
            else:
                assert (ssl.has_certificate, ssl.verified, ssl.common_name) == (True, True, "client 7")
            await req.send(b"question")
            assert await rep.receive() == b"question"
            events = rep.events()
            dialer.close()
            await next_event(events, sp.EventKind.DETACHED)


# TLS ends at the service.


@pytest.mark.parametrize(
    ("file", "version", "scheme", "changes"),
    [
        pytest.param("nginx-pass-through.conf", 1, "wss", {}, marks=pytest.mark.needs("nginx")),
        pytest.param("nginx-pass-through.conf", 1, "tls+tcp", {}, marks=pytest.mark.needs("nginx")),
        pytest.param("haproxy-pass-through.cfg", 2, "wss", {}, marks=pytest.mark.needs("haproxy")),
        pytest.param("haproxy-pass-through.cfg", 1, "wss", {"send-proxy-v2": "send-proxy"}, marks=pytest.mark.needs("haproxy")),
    ],
)
async def test_tls_passes_through_and_both_ends_see_each_other_s_certificate(
    file: str, version: int, scheme: str, changes: dict[str, str], directory: Path, authority: Authority
) -> None:
    server = authority.server(client_ca=authority.pem, require_client_certificate=False)
    http: dict[str, Any] = {"ws": sp.WSServerConfig(health_path="/healthz")} if scheme == "wss" else {}
    client = authority.client(certificate=authority.issue("client.example"))
    async with (
        sp.Rep0(listen=f"{scheme}://127.0.0.1:0", tls=server, proxy_protocol=True, **http) as rep,
        in_front(file, directory, rep, **changes) as running,
        client_at(CLIENT, running.port) as port,
        sp.Req0(tls=client, ws=DIRECT if http else None) as req,
        trio.open_nursery() as nursery,
    ):
        await req.dial(f"{scheme}://127.0.0.1:{port}")
        nursery.start_soon(echo, rep)
        assert await req.request(body_of(900_000)) == body_of(900_000)
        (pipe,) = rep.pipes
        assert pipe.remote_address.startswith(f"{CLIENT}:")
        assert pipe.proxy_address is not None
        assert pipe.proxy_address.startswith("127.0.0.1:")
        assert pipe.proxy is not None
        assert (pipe.proxy.version, pipe.proxy.source) == (version, pipe.remote_address)
        assert pipe.proxy.destination == f"127.0.0.1:{running.port}"
        assert pipe.tls is not None
        assert pipe.tls.names == ("DNS:client.example",)
        (ours,) = req.pipes
        assert ours.tls is not None
        assert ours.tls.verified
        nursery.cancel_scope.cancel()


@each_file("haproxy-pass-through.cfg")
async def test_a_health_check_goes_through_tls_with_a_proxy_header_of_its_own(file: str, directory: Path, authority: Authority) -> None:
    asked = trio.Event()

    def health() -> bool:
        asked.set()
        return False

    http = sp.WSServerConfig(health_path="/healthz", health=health)
    async with (
        sp.Rep0(listen="wss://127.0.0.1:0", tls=authority.server(), proxy_protocol=True, ws=http) as rep,
        in_front(file, directory, rep, **{"inter 2s": "inter 100ms"}) as running,
    ):
        events = rep.events()
        await asked.wait()
        await running.says("Server service/one is DOWN, reason: Layer7 wrong status, code: 503")
        rep.listeners[0].close()
        assert (await anext(events)).kind is sp.EventKind.STOPPED, "a health check is no refused newcomer"


@each_pass_through
async def test_a_service_that_expects_no_proxy_header_says_what_is_wrong(
    file: str, directory: Path, authority: Authority, tls: sp.TLSClientConfig
) -> None:
    http = sp.WSServerConfig(health_path="/healthz")
    async with (
        sp.Rep0(listen="wss://127.0.0.1:0", tls=authority.server(), ws=http) as rep,
        in_front(file, directory, rep) as running,
        sp.Req0(tls=tls, ws=DIRECT) as req,
    ):
        events = rep.events()
        with pytest.raises(sp.DialError):
            await req.dial(f"wss://127.0.0.1:{running.port}")
        event = await next_event(events, sp.EventKind.REFUSED)
        assert "that is a PROXY protocol header: the listener needs proxy_protocol=True" in event.reason


# Idle connections.


@pytest.mark.parametrize("pinging", ["client", "service"])
@pytest.mark.parametrize("file", ["wss", "pass-through"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("nginx", "haproxy")])
async def test_pings_keep_an_idle_connection_and_without_them_the_proxy_ends_it(
    name: str, file: str, pinging: str, directory: Path, authority: Authority, tls: sp.TLSClientConfig
) -> None:
    file = f"{name}-{file}.{'conf' if name == 'nginx' else 'cfg'}"
    passed = "pass" in file
    options: dict[str, Any] = {"tls": authority.server(), "proxy_protocol": True} if passed else {}
    ping: dict[str, Any] = {"ping_interval": PING, "ping_timeout": 5.0}
    none: dict[str, Any] = {"ping_interval": None}
    kept_http = sp.WSServerConfig(**(ping if pinging == "service" else none), health_path="/healthz")
    lost_http = sp.WSServerConfig(ping_interval=None)
    async with (
        sp.Rep0(listen=f"{'wss' if passed else 'ws'}://127.0.0.1:0/kept", ws=kept_http, **options) as kept,
        sp.Rep0(ws=lost_http, **options) as lost,
    ):
        await lost.listen(kept.listeners[0].url.replace("kept", "lost"))
        async with (
            in_front(file, directory, kept, **SHORT) as running,
            sp.Req0(tls=tls) as pinged,
            sp.Req0(tls=tls, **REDIAL) as silent,
        ):
            url = f"wss://127.0.0.1:{running.port}"
            own = sp.WSClientConfig(proxy=None, **(ping if pinging == "client" else none))
            pipe = (await pinged.dial(f"{url}/kept", ws=own)).pipe
            assert pipe is not None
            # The other one is the clock.  When it is lost, the proxy has found it idle for as long
            # as it allows.  That time is long beside the pings, since a busy machine may stop us
            # for a second.
            await be_lost(silent, f"{url}/lost")
            assert pinged.pipes == (pipe,)
            await pinged.send(b"still there?")
            assert await kept.receive() == b"still there?"


async def be_lost(silent: sp.Req0, url: str) -> None:
    """Dial *url* and say nothing until the connection is lost."""
    events = silent.events()
    await silent.dial(url, ws=sp.WSClientConfig(proxy=None, ping_interval=None))
    event = await next_event(events, sp.EventKind.DETACHED)
    assert isinstance(event.error, (sp.PeerClosed, OSError))


@each_wss
async def test_libnng_s_idle_connection_is_kept_where_everyone_is_pinged(
    file: str, directory: Path, authority: Authority, tls: sp.TLSClientConfig
) -> None:
    client = TLSConfig(TLSConfig.MODE_CLIENT, server_name="127.0.0.1", ca_string=authority.pem.decode())
    pinging = sp.WSServerConfig(ping_interval=PING, ping_timeout=5.0, ping_everyone=True)
    with open_partner("Req0", tls_config=client) as theirs:
        async with (
            sp.Rep0(listen=f"{ANY}/kept", ws=pinging) as kept,
            sp.Rep0(ws=sp.WSServerConfig(ping_interval=None)) as lost,
            in_front(file, directory, kept, **SHORT) as running,
            sp.Req0(tls=tls, **REDIAL) as silent,
        ):
            await lost.listen(kept.listeners[0].url.replace("kept", "lost"))
            url = f"wss://127.0.0.1:{running.port}"
            theirs.dial(f"{url}/kept", block=False)
            await kept.wait_for_peers()
            (pipe,) = kept.pipes
            await be_lost(silent, f"{url}/lost")
            assert kept.pipes == (pipe,)
            await theirs.asend(b"still there?")
            assert await kept.receive() == b"still there?"
            await kept.send(b"yes")
            assert await theirs.arecv() == b"yes", "and no ping was taken for a message"


# Two backends.


@asynccontextmanager
async def two_backends(file: str, directory: Path) -> AsyncIterator[tuple[Proxy, list[sp.Rep0]]]:
    """Two that answer, and a proxy that is quick to find out how they are."""
    http = sp.WSServerConfig(trusted_proxies="127.0.0.1", health_path="/healthz")
    changes = {"fail_timeout=10s": "fail_timeout=1s"} if "nginx" in file else {"inter 2s": "inter 100ms"}
    async with (
        sp.Rep0(listen=ANY, ws=http) as one,
        sp.Rep0(listen=ANY, ws=http) as two,
        in_front(file, directory, one, two, **changes) as running,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, one)
        nursery.start_soon(echo, two)
        yield running, [one, two]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["drain", "close"])
@each_balance
async def test_backends_are_restarted_one_after_the_other_and_no_request_is_lost(
    file: str, way: str, directory: Path, tls: sp.TLSClientConfig
) -> None:
    answered = 0
    progress = trio.Event()

    async def ask_on(req: sp.Req0, who: int) -> None:
        nonlocal answered, progress
        for n in itertools.count():
            question = b"%d asks question %d" % (who, n)
            assert await req.request(question) == question
            answered += 1
            progress.set()
            progress = trio.Event()

    async def until_more() -> None:
        enough = answered + 30
        while answered < enough:
            await progress.wait()

    async with (
        two_backends(file, directory) as (running, backends),
        sp.Req0(tls=tls, ws=DIRECT, **REDIAL) as req,
        trio.open_nursery() as nursery,
    ):
        await req.dial(f"wss://127.0.0.1:{running.port}")
        for who in range(3):
            nursery.start_soon(ask_on, req, who)
        served: list[sp.Rep0] = []
        for _ in range(4):
            await until_more()
            (rep,) = [backend for backend in backends if backend.pipes]
            served.append(rep)
            (listener,) = rep.listeners
            if way == "drain":
                await listener.drain()
            else:
                listener.close()
            await until_more()
            assert not rep.pipes
            await rep.listen(listener.url)
        assert served[0] is not served[1], "there is another one that takes over"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def held(rep: sp.Rep0) -> AsyncIterator[None]:
    """A peer that does not leave when *rep* asks it to, so that draining lasts."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(place_of(rep.listeners[0].url).rpartition(":")[2]))
    async with stream:
        await stream.send_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: rep.sp.nanomsg.org\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        yield


@each_balance
async def test_newcomers_go_to_the_other_backend_while_one_drains(file: str, directory: Path, tls: sp.TLSClientConfig) -> None:
    async with two_backends(file, directory) as (running, (one, two)), held(one), trio.open_nursery() as nursery:
        events = one.events()
        nursery.start_soon(one.listeners[0].drain)
        await trio.testing.wait_all_tasks_blocked()
        async with sp.Req0(tls=tls, ws=DIRECT) as req:
            for n in range(4):
                dialer = await req.dial(f"wss://127.0.0.1:{running.port}")
                assert await req.request(b"%d" % n) == b"%d" % n
                assert len(two.pipes) == 1
                dialer.close()
                while two.pipes:
                    await trio.testing.wait_all_tasks_blocked(0.002)
        if running.name == "nginx":
            event = await next_event(events, sp.EventKind.REFUSED)  # which is how it finds out
            assert "503" in event.reason
        nursery.cancel_scope.cancel()


@each_file("haproxy-balance.cfg")
async def test_health_checks_see_a_backend_go_and_come_back(file: str, directory: Path) -> None:
    async with two_backends(file, directory) as (running, (one, _)):
        async with held(one), trio.open_nursery() as nursery:
            (listener,) = one.listeners
            nursery.start_soon(listener.drain)
            await running.says("Server service/one is DOWN, reason: Layer7 wrong status, code: 503")
            nursery.cancel_scope.cancel()
        assert not one.listeners
        place = len(running.log)
        await one.listen(listener.url)
        await running.says("Server service/one is UP, reason: Layer7 check passed, code: 200", place)
