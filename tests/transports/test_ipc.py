"""ipc: socket files, their owners and modes, abstract names, and the message type byte."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing

import sp
from sp.address import Address
from sp.sockets.endpoint_config import config_to_listen
from sp.transports import ipc
from sp.transports.link import BACKLOG
from tests.transports.wire import BUS, connect, connect_as, expect, frame, receive_end, receive_exactly

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract names exist on Linux only")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


async def check(url: str, rep: sp.Rep0) -> None:
    """Send a request to *rep* through *url*."""
    with trio.fail_after(5):
        async with sp.Req0() as req:
            await req.dial(url)
            await req.send(b"hello")
            assert await rep.receive() == b"hello"


def leave_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert stat.S_ISSOCK(path.lstat().st_mode)


# Socket files.


async def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    leave_stale(path)
    async with sp.Rep0(listen=f"ipc://{path}") as rep:
        await check(f"ipc://{path}", rep)


async def test_the_file_of_a_process_that_was_killed_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
    async with sp.Rep0(listen=f"ipc://{path}") as rep:
        await check(f"ipc://{path}", rep)


@pytest.mark.parametrize("when", ["connect", "unlink"])
async def test_a_stale_socket_file_that_another_removes_meanwhile_is_no_obstacle(
    path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stale(path)
    holder: Any = {"connect": socket.socket, "unlink": os}[when]
    call = getattr(holder, when)

    def late(*arguments: object) -> object:
        if path.exists():
            path.rename(path.with_name("gone"))
        return call(*arguments)

    monkeypatch.setattr(holder, when, late)
    async with sp.Rep0() as rep:
        await rep.listen(f"ipc://{path}")
        monkeypatch.undo()
        await check(f"ipc://{path}", rep)


async def test_a_dial_to_a_stale_socket_file_is_refused(path: Path) -> None:
    leave_stale(path)
    async with sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
            await req.dial(f"ipc://{path}")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert path.exists()


async def test_a_live_socket_file_is_refused_and_its_listener_keeps_working(path: Path) -> None:
    async with sp.Rep0(listen=f"ipc://{path}") as first, sp.Rep0() as second:
        identity = path.stat().st_ino
        for _ in range(3):
            with pytest.raises(OSError, match="address in use") as caught:
                await second.listen(f"ipc://{path}")
            assert caught.value.errno == errno.EADDRINUSE
        assert path.stat().st_ino == identity
        await check(f"ipc://{path}", first)


async def test_a_live_listener_whose_backlog_is_full_is_refused_as_well(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        busy.bind(str(path))
        busy.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(str(path))
        async with sp.Rep0() as rep:
            with pytest.raises(OSError, match="address in use"):
                await rep.listen(f"ipc://{path}")
        assert stat.S_ISSOCK(path.lstat().st_mode)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
async def test_a_file_that_is_not_a_socket_is_never_deleted(path: Path, kind: str) -> None:
    other = path.with_name("other")
    other.write_bytes(b"precious")
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(other)
    else:
        os.mkfifo(path)
    before = path.lstat()
    async with sp.Rep0() as rep:
        with pytest.raises(OSError, match="address in use"):
            await rep.listen(f"ipc://{path}")
    assert path.lstat().st_ino == before.st_ino
    assert other.read_bytes() == b"precious"
    if kind == "file":
        assert path.read_bytes() == b"precious"


async def test_a_directory_that_is_missing_is_named_in_the_error(path: Path) -> None:
    async with sp.Rep0() as rep:
        with pytest.raises(FileNotFoundError, match="missing"):
            await rep.listen(f"ipc://{path.parent}/missing/s")


async def test_the_file_is_removed_on_close(path: Path) -> None:
    async with sp.Rep0() as rep:
        listener = await rep.listen(f"ipc://{path}")
        assert path.exists()
        listener.close()
        assert not path.exists()
        await rep.listen(f"ipc://{path}")
        assert path.exists()
    assert not path.exists()


async def test_a_file_that_took_the_place_of_ours_is_not_removed(path: Path) -> None:
    async with sp.Rep0() as first, sp.Rep0() as second:
        listener = await first.listen(f"ipc://{path}")
        path.rename(path.with_name("moved"))  # so that its inode stays taken
        await second.listen(f"ipc://{path}")
        listener.close()
        await check(f"ipc://{path}", second)
    assert not path.exists()


async def test_an_address_that_is_closed_twice_leaves_the_file_of_its_successor_alone(path: Path, tmp_path: Path) -> None:
    address = Address.parse(f"ipc://{path}")
    (acceptor,) = await ipc.listen(address, config_to_listen(sp.Bus0()._core.endpoint_config, address, None, None, None))
    os.link(path, tmp_path / "kept")
    acceptor.close()
    assert not path.exists()
    (tmp_path / "kept").rename(path)  # a new file may get the number of one that is gone
    acceptor.close()  # as a drained listener does
    assert path.exists()


async def test_closing_is_no_trouble_when_the_file_is_gone_already(path: Path) -> None:
    async with sp.Rep0() as rep:
        await rep.listen(f"ipc://{path}")
        path.unlink()


async def test_a_relative_path_means_the_directory_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    async with sp.Rep0() as rep:
        listener = await rep.listen("ipc://here")
        assert stat.S_ISSOCK((tmp_path / "here").lstat().st_mode)
        await check("ipc://here", rep)
        monkeypatch.chdir(elsewhere)
        (elsewhere / "here").write_bytes(b"somebody else's")
        await check(f"ipc://{tmp_path}/here", rep)
        listener.close()
        assert not (tmp_path / "here").exists()
        assert (elsewhere / "here").read_bytes() == b"somebody else's"


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A directory whose path is too long for an address of a socket."""
    directory = tmp_path / ("x" * 60) / ("y" * 60)
    directory.mkdir(parents=True)
    return directory


@pytest.mark.parametrize("scheme", ["ipc", "ws+unix"])
async def test_a_relative_path_is_the_same_file_at_each_redial(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    url = f"{scheme}://here"
    async with sp.Rep0(listen=url) as rep, sp.Rep0() as other, sp.Req0(redial_min=0.01, redial_max=0.01) as req:
        with trio.fail_after(5):
            dialer = await req.dial(url)
            monkeypatch.chdir(elsewhere)
            await other.listen(url)
            for sock in (rep, req):
                assert sock.pipes[0].local_address == url  # as it was given
            await rep.wait_for_peers()
            rep.pipes[0].close()
            await rep.wait_for_peers()
            await req.wait_for_peers()
            await req.send(b"hello")
            assert await rep.receive() == b"hello"
        assert other.pipes == ()
        assert dialer.url == url


@pytest.mark.parametrize("scheme", ["ipc", "ws+unix"])
async def test_a_relative_path_may_be_too_long_with_its_directory_while_that_is_the_working_one(
    scheme: str, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(deep)
    url = f"{scheme}://here"
    async with sp.Rep0(listen=url) as rep, sp.Req0(redial_min=0.01, redial_max=0.01) as req:
        await check(url, rep)
        monkeypatch.chdir(deep.parent)
        await check(f"{scheme}://{deep.name}/here", rep)
        events = req.events()
        with trio.fail_after(5):
            await req.dial(f"{scheme}://{deep.name}/here")
            monkeypatch.chdir(tmp_path.parent)
            await rep.wait_for_peers()
            rep.pipes[0].close()
            event = await expect(events, sp.EventKind.DIAL_FAILED)
            assert "is longer than 107 bytes, and not below the working directory" in event.reason
            monkeypatch.chdir(deep.parent)
            await req.wait_for_peers()  # it is found again
    assert list(deep.iterdir()) == []


async def test_a_stale_file_is_replaced_also_where_its_path_is_too_long(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(deep)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("here")
    async with sp.Rep0(listen="ipc://here") as rep:
        await check("ipc://here", rep)


async def test_a_working_directory_that_is_gone_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    async with sp.Rep0() as rep:
        with pytest.raises(FileNotFoundError):
            await rep.listen("ipc://here")
        with pytest.raises(sp.DialError, match="No such file"):
            await rep.dial("ipc://here")
        await rep.listen(f"ipc://{tmp_path}/there")
    monkeypatch.chdir(tmp_path)


async def test_the_longest_path_works_and_one_byte_more_is_an_address_error(tmp_path: Path) -> None:
    longest = f"{tmp_path}/".ljust(107, "x")
    async with sp.Rep0(listen=f"ipc://{longest}") as rep:
        await check(f"ipc://{longest}", rep)
        for call in (rep.listen, rep.dial):
            with pytest.raises(sp.AddressError, match="108 bytes.*at most 107"):
                await call(f"ipc://{longest}x")


# Backlogs.


@pytest.fixture(params=["ipc", "ws+unix", pytest.param("abstract", marks=linux_only)])
def local_url(request: pytest.FixtureRequest, path: Path) -> str:
    return f"abstract://sp-test-{os.getpid()}-{path.parent.name}" if request.param == "abstract" else f"{request.param}://{path}"


@linux_only
async def test_a_backlog_is_as_long_as_the_system_lets_it_be(local_url: str) -> None:
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
    async with sp.Rep0(listen=local_url):
        with ExitStack() as stack:
            for _ in range(min(longest, 300)):  # the listener does not run in between
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                sock.connect(Address.parse(local_url).path)


@pytest.mark.slow
@linux_only  # elsewhere a full backlog is a refusal
@pytest.mark.parametrize("backlog", [0, BACKLOG], ids=["of one", "as large as can be"])
async def test_400_dialers_at_once_all_get_through(local_url: str, backlog: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sp.transports.ipc.BACKLOG", backlog)
    async with sp.Bus0(listen=local_url) as hub, sp.Bus0(handshake_timeout=60) as dialers:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(400):
                    nursery.start_soon(dialers.dial, local_url)
            await hub.wait_for_peers(400)
        assert [dialer.statistics().failures for dialer in dialers.dialers] == [{}] * 400


@linux_only
async def test_a_backlog_that_stays_full_is_waited_for_until_the_greeting_timeout(
    local_url: str, autojump_clock: trio.testing.MockClock
) -> None:
    address = Address.parse(local_url).path
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(address)
        busy.listen(0)
        first.connect(address)
        async with sp.Bus0(handshake_timeout=7) as bus:
            began = trio.current_time()
            with pytest.raises(sp.DialError, match="no connection within 7 s"):
                await bus.dial(local_url)
            assert 6.9 < trio.current_time() - began < 7.1


# Modes.


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
async def test_the_file_has_the_mode_asked_for_under_any_umask_and_never_a_wider_one(
    path: Path, umask: Callable[[int], int], mask: int, mode: int
) -> None:
    seen: set[int] = set()

    def look(_frame: FrameType, _event: str, _argument: object) -> None:
        try:
            seen.add(stat.S_IMODE(os.lstat(path).st_mode))
        except FileNotFoundError:
            pass

    async with sp.Rep0(ipc_mode=mode) as rep:
        umask(mask)
        before = sys.getprofile()
        # Called around every call, built-in ones too: between two system calls there is no moment
        # unseen.
        sys.setprofile(look)
        try:
            await rep.listen(f"ipc://{path}")
        finally:
            sys.setprofile(before)
        assert umask(0o022) == mask
        assert stat.S_IMODE(path.lstat().st_mode) == mode
        assert seen
        assert not any(each & ~mode for each in seen), f"the file had {[oct(each) for each in seen]}"


async def test_without_a_mode_the_file_has_what_the_umask_leaves(path: Path, umask: Callable[[int], int]) -> None:
    async with sp.Rep0() as rep:
        umask(0o027)
        await rep.listen(f"ipc://{path}")
        assert stat.S_IMODE(path.lstat().st_mode) == 0o750


# Abstract names.


@linux_only
async def test_an_abstract_name_is_percent_decoded_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = f"sp/{os.getpid()}\0\xff name".encode("latin-1")
    url = f"abstract://sp%2f{os.getpid()}%00%FF%20name"
    async with sp.Bus0(listen=url) as bus:
        with trio.fail_after(5):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(b"\0" + raw)
            async with await connect_as(url, BUS) as stream:
                await stream.send_all(frame(b"hello", typed=True))
                assert await bus.receive() == b"hello"
        assert list(tmp_path.iterdir()) == []


@linux_only
async def test_an_abstract_name_that_is_too_long_is_an_address_error() -> None:
    async with sp.Bus0() as bus:
        with pytest.raises(sp.AddressError, match="108 bytes"):
            await bus.listen("abstract://" + "%01" * 108)


@linux_only
async def test_without_a_name_each_listener_gets_a_free_one_which_can_be_dialed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with sp.Pull0(listen=["abstract://", "abstract://"]) as pull, sp.Push0() as push:
        events = pull.events()
        await pull.listen("abstract://")
        urls = [listener.url for listener in pull.listeners]
        assert len(set(urls)) == 3
        assert (await anext(events)).url == urls[2]
        with trio.fail_after(5):
            for url in urls:
                assert (await push.dial(url)).url == url
            await pull.wait_for_peers(3)
        assert {pipe.local_address for pipe in pull.pipes} == set(urls)
        with pytest.raises(sp.AddressError, match="can be listened on but not dialed"):
            await push.dial("abstract://")
        assert list(tmp_path.iterdir()) == []


# The wire.


async def test_a_message_on_the_wire_is_a_one_its_length_and_its_body(path: Path) -> None:
    async with sp.Bus0(listen=f"ipc://{path}") as bus:
        with trio.fail_after(5):
            async with await connect(f"ipc://{path}") as stream:
                await stream.send_all(b"\0SP\0\0\x70\0\0")
                assert await receive_exactly(stream, 8) == b"\0SP\0\0\x70\0\0"
                await bus.wait_for_peers()
                await bus.send(b"hello")
                assert await receive_exactly(stream, 14) == b"\1\0\0\0\0\0\0\0\5hello"
                await stream.send_all(b"\1\0\0\0\0\0\0\0\3abc")
                assert await bus.receive() == b"abc"


@pytest.mark.parametrize("kind", [0, 2, 255])
async def test_a_wrong_message_type_ends_that_pipe_and_the_listener_goes_on(path: Path, kind: int) -> None:
    async with sp.Bus0(listen=f"ipc://{path}") as bus:
        events = bus.events()
        with trio.fail_after(5):
            async with await connect_as(f"ipc://{path}", BUS) as bad, await connect_as(f"ipc://{path}", BUS) as good:
                await bus.wait_for_peers(2)
                await bad.send_all(frame(b"good", typed=True) + bytes([kind]) + frame(b"bad"))
                assert await bus.receive() == b"good"
                event = await expect(events, sp.EventKind.DETACHED)
                assert isinstance(event.error, sp.MalformedMessage)
                assert f"not {kind}" in event.reason
                assert await receive_end(bad) == b""
                await good.send_all(frame(b"more", typed=True))
                assert await bus.receive() == b"more"
