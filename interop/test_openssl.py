"""Against the ``openssl`` program, which does not know SP: a second opinion on our TLS, on either
side."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Final, Literal, cast

import pytest
import trio

import sp
from interop.partners import REDIAL, next_event, output_of, records, relay, running
from tests.tls.authority import Authority
from tests.tls.strict import strict_handshake
from tests.transports.wire import BUS, REP, REQ, frame, greeting, until

pytestmark = pytest.mark.needs("openssl")

Version = Literal["TLSv1.2", "TLSv1.3"]

URL: Final = "tls+tcp://127.0.0.1:0"
SOON: Final = 5
"""Seconds; nothing here needs even one.  Fewer than the handshake time."""
FLAGS: Final = {"TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}
KEY_UPDATE: Final = (0x17, 4 + 1 + 1 + 16)
"""Type and size of the record with a key update: header, content, type and the cipher's tag."""
ID: Final = b"\x80\0\0\x07"
"""The id of the requests that we have the program send."""


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> Version:
    return cast("Version", request.param)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Write a file, and return its path for a command line."""

    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


class Program:
    """A running ``openssl``: its output has what came from the peer, among its own messages."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._heard = b""

    async def say(self, data: bytes) -> None:
        """Have the program send *data*; a letter that is a command is obeyed instead."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(data)

    async def hears(self, expected: bytes) -> bytes:
        """Wait for *expected*; return all that came before."""
        while expected not in self._heard:
            more = await output_of(self.process).receive_some()
            assert more, f"the program ended without {expected!r}: {self._heard.decode(errors='replace')}"
            self._heard += more
        before, _, self._heard = self._heard.partition(expected)
        return before

    async def end(self) -> tuple[int, bytes]:
        """Tell the program that there is no more to send; return its exit status and its last
        output."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        async for more in output_of(self.process):
            self._heard += more
        return await self.process.wait(), self._heard


@asynccontextmanager
async def openssl(*arguments: str) -> AsyncIterator[Program]:
    async with running("openssl", *arguments, stdin=PIPE, stderr=STDOUT) as process:
        yield Program(process)


# Making certificates.


def test_the_commands_in_the_guide_make_certificates_for_strict_clients(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "tls.md").read_text()
    (commands,) = re.findall(r"```\n(openssl req .*?)```", guide, re.DOTALL)
    for who, script in (("server", commands), ("client", commands.replace("serverAuth", "clientAuth"))):
        directory = tmp_path / who
        directory.mkdir()
        if who == "client":  # of the same authority
            script = "".join(line for line in script.splitlines(keepends=True) if not line.startswith("openssl req -x509"))
            for name in ("ca.pem", "ca.key"):
                shutil.copy(tmp_path / "server" / name, directory)
        subprocess.run(["sh", "-e", "-c", script], cwd=directory, check=True, capture_output=True)
        (directory / "own.pem").write_bytes((directory / "server.key").read_bytes() + (directory / "server.crt").read_bytes())
    server, client = tmp_path / "server" / "own.pem", tmp_path / "client" / "own.pem"
    ca = tmp_path / "server" / "ca.pem"
    for name in ("service.example", "192.0.2.7"):
        strict_handshake(ca, server, client, name=name)
    sp.TLSServerConfig(certificate=server, client_ca=ca)
    sp.TLSClientConfig(certificate=client, ca=ca)


# As a client.


@asynccontextmanager
async def s_client(listener: sp.Listener, *options: str) -> AsyncIterator[Program]:
    async with openssl("s_client", "-connect", listener.url.removeprefix("tls+tcp://"), *options) as program:
        yield program


async def ask(program: Program, ours: sp.Rep0, body: bytes) -> None:
    """Let the program ask, and our socket answer."""
    await program.say(frame(ID + body))
    assert await ours.receive() == body
    await ours.send(body.upper())
    await program.hears(frame(ID + body.upper()))


async def greet(program: Program) -> str:
    """Let the program greet as a REQ; return its output until our greeting."""
    before = await program.hears(greeting(REP))
    await program.say(greeting(REQ))
    return before.decode()


async def refused(ours: sp.Rep0, *options: str) -> tuple[sp.Event, str]:
    """Let the program connect in vain; return our event, and its output."""
    events = ours.events()
    async with s_client(ours.listeners[0], *options) as program:
        with trio.fail_after(SOON):
            event = await next_event(events, sp.EventKind.REFUSED)
            _, words = await program.end()
    assert not ours.pipes
    assert greeting(REP) not in words
    return event, words.decode()


async def test_s_client_verifies_us_and_is_greeted(version: Version, authority: Authority, write: Callable[[str, bytes], str]) -> None:
    options = (FLAGS[version], "-CAfile", write("ca", authority.pem), "-verify_return_error", "-verify_ip", "127.0.0.1")
    async with sp.Rep0(listen=URL, tls=authority.server()) as ours, s_client(ours.listeners[0], *options) as program:
        words = await greet(program)
        assert f"New, {version}, Cipher is " in words
        assert "Verification: OK" in words
        assert "Verify return code: 0 (ok)" in words
        await ask(program, ours, b"question")
        (pipe,) = ours.pipes
        assert pipe.tls is not None
        assert pipe.tls.version == version
        assert f"Cipher is {pipe.tls.cipher}\n" in words
        status, _ = await program.end()
        assert status == 0
        while not pipe.reason:
            await trio.lowlevel.checkpoint()
        assert isinstance(pipe.error, sp.PeerClosed)
        assert "without saying so" not in pipe.reason, "it has sent a close_notify"


async def test_s_client_does_not_believe_us_without_our_authority(
    version: Version, authority: Authority, stranger: Authority, write: Callable[[str, bytes], str]
) -> None:
    async with sp.Rep0(listen=URL, tls=authority.server()) as ours:
        event, words = await refused(ours, FLAGS[version], "-CAfile", write("ca", stranger.pem), "-verify_return_error")
        assert isinstance(event.error, sp.AuthenticationError)
        assert "the client refused our certificate" in event.reason
        assert "certificate verify failed" in words


@pytest.mark.parametrize("mutual", [False, True], ids=["anonymous", "certificate"])
async def test_s_client_resumes(
    mutual: bool, version: Version, authority: Authority, write: Callable[[str, bytes], str], tmp_path: Path
) -> None:
    own = write("own", authority.issue("client.example"))
    options = (FLAGS[version], *(("-cert", own, "-key", own) if mutual else ()))
    session = str(tmp_path / "session")
    async with sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem if mutual else None)) as ours:
        (listener,) = ours.listeners
        async with s_client(listener, *options, "-sess_out", session) as program:
            assert f"New, {version}, Cipher is " in await greet(program)
            await ask(program, ours, b"first")  # what it read before the answer includes the ticket
            await program.end()
        assert (tmp_path / "session").read_bytes().startswith(b"-----BEGIN SSL SESSION PARAMETERS-----")
        events = ours.events()
        async with s_client(listener, *options, "-sess_in", session) as program:
            assert f"Reused, {version}, Cipher is " in await greet(program)
            await ask(program, ours, b"second")
            event = await next_event(events, sp.EventKind.ATTACHED)
            assert event.pipe is not None
            assert event.pipe.tls is not None
            assert event.pipe.tls.resumed
            assert event.pipe.tls.names == (("DNS:client.example",) if mutual else ())
        assert listener.statistics().tls_handshakes == {"full": 1, "resumed": 1}


async def test_s_client_resumes_nothing_where_that_is_switched_off(version: Version, authority: Authority, tmp_path: Path) -> None:
    session = tmp_path / "session"
    async with sp.Rep0(listen=URL, tls=authority.server(session_reuse=False)) as ours:
        (listener,) = ours.listeners
        for _ in range(2):
            known = ("-sess_in", str(session)) if session.exists() and session.stat().st_size else ()
            async with s_client(listener, FLAGS[version], "-sess_out", str(session), *known) as program:
                assert f"New, {version}, Cipher is " in await greet(program)
                await ask(program, ours, b"question")
                await program.end()
        assert listener.statistics().tls_handshakes == {"full": 2}


@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
async def test_versions_before_1_2_are_refused(flag: str, authority: Authority) -> None:
    async with sp.Rep0(listen=URL, tls=authority.server()) as ours:
        event, words = await refused(ours, flag, "-cipher", "DEFAULT@SECLEVEL=0")
        assert type(event.error) is sp.TLSError
        assert "unsupported protocol" in event.reason
        assert "alert protocol version" in words


async def test_a_client_that_is_older_than_what_we_speak_is_refused(authority: Authority) -> None:
    async with sp.Rep0(listen=URL, tls=authority.server(minimum_version="TLSv1.3")) as ours:
        event, words = await refused(ours, "-tls1_2")
        assert type(event.error) is sp.TLSError
        assert "unsupported protocol" in event.reason
        assert "alert protocol version" in words


async def test_a_client_that_has_no_cipher_in_common_with_us_is_refused(authority: Authority) -> None:
    async with sp.Rep0(listen=URL, tls=authority.server()) as ours:
        # Our key is no RSA key.
        event, words = await refused(ours, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")
        assert type(event.error) is sp.TLSError
        assert "no shared cipher" in event.reason
        assert "alert handshake failure" in words


async def test_a_protocol_that_is_offered_inside_tls_is_passed_over(version: Version, authority: Authority) -> None:
    async with (
        sp.Rep0(listen=URL, tls=authority.server()) as ours,
        s_client(ours.listeners[0], FLAGS[version], "-alpn", "foo") as program,
    ):
        assert "No ALPN negotiated" in await greet(program)
        await ask(program, ours, b"question")


async def test_s_client_is_known_by_its_certificate(version: Version, authority: Authority, write: Callable[[str, bytes], str]) -> None:
    own = write("own", authority.issue("client.example", subject="client 7"))
    async with (
        sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem)) as ours,
        s_client(ours.listeners[0], FLAGS[version], "-cert", own, "-key", own) as program,
    ):
        words = await greet(program)
        assert "Acceptable client certificate CA names" in words
        await ask(program, ours, b"question")
        (pipe,) = ours.pipes
        assert pipe.tls is not None
        assert pipe.tls.verified
        assert "CN=client 7" in pipe.tls.subject
        assert pipe.tls.names == ("DNS:client.example",)


async def test_s_client_without_a_certificate_is_refused_where_one_is_required(version: Version, authority: Authority) -> None:
    async with sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem)) as ours:
        event, words = await refused(ours, FLAGS[version])
        assert isinstance(event.error, sp.AuthenticationError)
        assert "the client sent no certificate, and one is required" in event.reason
        assert ("alert certificate required" if version == "TLSv1.3" else "alert handshake failure") in words


async def test_s_client_with_a_stranger_s_certificate_is_refused(
    version: Version, authority: Authority, stranger: Authority, write: Callable[[str, bytes], str]
) -> None:
    own = write("own", stranger.issue("client.example"))
    async with sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem)) as ours:
        event, words = await refused(ours, FLAGS[version], "-cert", own, "-key", own)
        assert isinstance(event.error, sp.AuthenticationError)
        assert "the client's certificate was refused" in event.reason
        assert "alert unknown ca" in words


def key_updates(path: Path) -> tuple[int, int]:
    """Return how many key updates the program has sent and received, by its log of messages."""
    log = path.read_text()
    sent, received = (len(re.findall(rf"^{arrow} .*KeyUpdate", log, re.MULTILINE)) for arrow in (">>>", "<<<"))
    return sent, received


async def test_messages_flow_on_after_a_client_s_key_updates(authority: Authority, tmp_path: Path) -> None:
    log = tmp_path / "messages"
    async with (
        sp.Rep0(listen=URL, tls=authority.server()) as ours,
        s_client(ours.listeners[0], "-tls1_3", "-msg", "-msgfile", str(log)) as program,
    ):
        await greet(program)
        # Only the capital K asks us to change our keys too.
        for n, command in enumerate((b"K", b"k", b"K", b"K")):
            await ask(program, ours, b"before %d" % n)
            await program.say(command + b"\n")
            await program.hears(b"KEYUPDATE\n")
        await ask(program, ours, bytes(50_000))
        assert len(ours.pipes) == 1
        await program.end()
    assert key_updates(log) == (4, 3)


async def test_answers_to_key_updates_do_not_pile_up_where_nothing_else_is_said(authority: Authority) -> None:
    # OpenSSL answers each request when it reads the next one, and the last one when it has data to
    # send.
    async with (
        sp.Bus0(listen=URL, tls=authority.server()) as ours,
        relay(ours.url) as (between, url),
        openssl("s_client", "-connect", url.removeprefix("tls+tcp://"), "-tls1_3") as program,
    ):
        await program.hears(greeting(BUS))
        await program.say(greeting(BUS))
        await program.say(frame(b"hello"))
        assert await ours.receive() == b"hello"
        assert KEY_UPDATE not in records(between.said)
        for _ in range(3):
            await program.say(b"K\n")
            await program.hears(b"KEYUPDATE\n")
        with trio.fail_after(SOON):
            await until(lambda: records(between.said).count(KEY_UPDATE) == 2)


# As a server.


class Server:
    """``openssl s_server``, which serves one client after the other, and where it listens."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.url = f"tls+tcp://127.0.0.1:{port}"

    async def greet(self) -> str:
        """Let the server greet as a REP once we have; return its output until then."""
        before = await self.program.hears(greeting(REQ))
        await self.program.say(greeting(REP))
        return before.decode()

    async def answer(self, ours: sp.Req0, body: bytes) -> None:
        """Let our socket ask, and the server answer."""
        await ours.send(body)
        prefix = (len(ID) + len(body)).to_bytes(8, "big")
        await self.program.hears(prefix)
        request_id = await self.program.hears(body)
        assert len(request_id) == len(ID)
        assert request_id[0] & 0x80
        await self.program.say(frame(request_id + body.upper()))
        assert await ours.receive() == body.upper()


@asynccontextmanager
async def s_server(own: str, *options: str) -> AsyncIterator[Server]:
    async with openssl("s_server", "-accept", "127.0.0.1:0", "-cert", own, "-key", own, *options) as program:
        await program.hears(b"ACCEPT 127.0.0.1:")
        yield Server(program, int(await program.hears(b"\n")))


async def dial(ours: sp.Req0, server: Server) -> sp.Dialer:
    """Connect the two."""
    dialer = await ours.dial(server.url, wait=False)
    await server.greet()
    await ours.wait_for_peers()
    return dialer


@pytest.fixture
def own(authority: Authority, write: Callable[[str, bytes], str]) -> str:
    """The server's certificate and key."""
    return write("server", authority.issue("localhost", "127.0.0.1"))


async def test_s_server_reads_what_we_send_and_we_read_its_answer(version: Version, authority: Authority, own: str) -> None:
    async with s_server(own) as server, sp.Req0(tls=authority.client(maximum_version=version)) as ours:
        dialer = await dial(ours, server)
        await server.answer(ours, b"question")
        await server.answer(ours, b"a longer question" * 2000)
        (pipe,) = ours.pipes
        assert pipe.tls is not None
        assert (pipe.tls.version, pipe.tls.verified) == (version, True)
        assert dialer.statistics().tls_handshakes == {"full": 1}


async def test_we_resume_and_s_server_says_so(version: Version, authority: Authority, own: str) -> None:
    async with s_server(own) as server, sp.Req0(tls=authority.client(maximum_version=version), **REDIAL) as ours:
        dialer = await dial(ours, server)
        await server.answer(ours, b"first")
        ours.pipes[0].close()
        words = await server.greet()
        assert "Reused session-id" in words
        await server.answer(ours, b"second")
        (pipe,) = ours.pipes
        assert pipe.tls is not None
        assert (pipe.tls.resumed, pipe.tls.verified, pipe.tls.names) == (True, True, ("DNS:localhost", "IP:127.0.0.1"))
        statistics = dialer.statistics()
        assert statistics.tls_handshakes == {"full": 1, "resumed": 1}
        assert statistics.failures == {"ClosedResourceError": 1}, "only the pipe that we closed"


async def test_a_server_that_was_killed_is_missed_with_the_reason(version: Version, authority: Authority, own: str) -> None:
    async with s_server(own) as server, sp.Req0(tls=authority.client(maximum_version=version)) as ours:
        events = ours.events()
        await dial(ours, server)
        await server.answer(ours, b"question")
        server.program.process.kill()
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.PeerClosed)
        assert "without ending TLS" in event.reason


async def failure(server: Server, client: sp.TLSClientConfig) -> Exception:
    """Dial in vain, and return the reason."""
    async with sp.Req0(tls=client) as ours:
        with trio.fail_after(SOON), pytest.raises(sp.DialError) as caught:
            await ours.dial(server.url)
        assert not ours.pipes
        assert isinstance(caught.value.__cause__, Exception)
        return caught.value.__cause__


async def test_a_server_with_a_certificate_of_an_unknown_authority_is_refused_and_reported(
    version: Version, authority: Authority, stranger: Authority, write: Callable[[str, bytes], str]
) -> None:
    async with s_server(write("strange", stranger.issue("127.0.0.1"))) as server:
        cause = await failure(server, authority.client(maximum_version=version))
        assert isinstance(cause, sp.AuthenticationError)
        assert "the server's certificate was refused: unable to get local issuer certificate" in str(cause)
        await server.program.hears(b"alert unknown ca")


async def test_a_server_with_another_name_is_refused_and_reported(
    version: Version, authority: Authority, write: Callable[[str, bytes], str]
) -> None:
    async with s_server(write("other", authority.issue("other.example"))) as server:
        cause = await failure(server, authority.client(maximum_version=version))
        assert isinstance(cause, sp.AuthenticationError)
        assert "it is for DNS:other.example, not for '127.0.0.1'" in str(cause)
        await server.program.hears(b"alert bad certificate")


@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
async def test_a_server_of_a_version_before_1_2_is_refused(flag: str, authority: Authority, own: str) -> None:
    async with s_server(own, flag, "-cipher", "DEFAULT@SECLEVEL=0") as server:
        cause = await failure(server, authority.client())
        assert type(cause) is sp.TLSError
        assert "alert protocol version" in str(cause)


async def test_s_server_knows_us_by_our_certificate(
    version: Version, authority: Authority, own: str, write: Callable[[str, bytes], str]
) -> None:
    demand = ("-Verify", "1", "-verify_return_error", "-CAfile", write("ca", authority.pem))
    client = authority.client(certificate=authority.issue("ours.example", subject="client 7"), maximum_version=version)
    async with s_server(own, *demand) as server, sp.Req0(tls=client) as ours:
        await ours.dial(server.url, wait=False)
        assert "client 7" in await server.greet()
        await server.answer(ours, b"question")


async def test_we_learn_that_s_server_wants_a_certificate(
    version: Version, authority: Authority, own: str, write: Callable[[str, bytes], str]
) -> None:
    demand = ("-Verify", "1", "-verify_return_error", "-CAfile", write("ca", authority.pem))
    async with s_server(own, *demand) as server:
        cause = await failure(server, authority.client(maximum_version=version))
        assert isinstance(cause, sp.AuthenticationError)
        assert ("alert certificate required" if version == "TLSv1.3" else "alert handshake failure") in str(cause)


async def test_messages_flow_on_after_a_server_s_key_updates(authority: Authority, own: str, tmp_path: Path) -> None:
    log = tmp_path / "messages"
    async with s_server(own, "-tls1_3", "-msg", "-msgfile", str(log)) as server, sp.Req0(tls=authority.client()) as ours:
        await dial(ours, server)
        for n, command in enumerate((b"K", b"k", b"K", b"K")):
            await server.answer(ours, b"before %d" % n)
            # It obeys that before it reads what comes next from us.
            await server.program.say(command + b"\n")
        # The first leaves before we have read the last update.
        for body in (b"after", b"after that"):
            await server.answer(ours, body)
        assert len(ours.pipes) == 1
        await server.program.say(b"Q\n")
        await server.program.end()
    assert key_updates(log) == (4, 3)
