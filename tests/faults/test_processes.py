"""What happens to a process: Ctrl-C, fork, sockets that are forgotten, and descriptors that run
out.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import trio

import sp
from tests.faults.scripts import run_script, start_script
from tests.transports.ends import authority, server_tls
from tests.transports.wire import expect

pytestmark = pytest.mark.slow

posix_only = pytest.mark.skipif(os.name != "posix", reason="sends signals and forks as POSIX systems do")

# Ctrl-C.

_INTERRUPTED = """
import sys, sp, trio, trio.testing

@trio.lowlevel.enable_ki_protection
async def say_ready():
    await trio.testing.wait_all_tasks_blocked(0.01)
    print("ready", flush=True)

async def main():
    async with {socket} as s:
        trio.lowlevel.spawn_system_task(say_ready)
        {wait}

try:
    trio.run(main)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

_WAITS = {
    "receive": ("sp.Rep0(listen='tcp://127.0.0.1:0')", "await s.receive()"),
    "receive a reply": ("sp.Rep0(listen='inproc://x')", "async with sp.Req0(dial='inproc://x') as r: await r.request(b'')"),
    "send": ("sp.Req0()", "await s.send(b'to nobody')"),
    "request": ("sp.Req0(dial='tcp://127.0.0.1:1')", "await s.request(b'to nobody')"),
    "dial": ("sp.Req0(handshake_timeout=100)", "await s.dial(sys.argv[1])"),
    "wait for peers": ("sp.Bus0(dial='inproc://nobody')", "await s.wait_for_peers()"),
    "events": ("sp.Bus0()", "await anext(s.events())"),
    "requests": ("sp.Rep0(listen='tcp://127.0.0.1:0')", "await anext(s.requests())"),
    "receive many": ("sp.Sub0(listen='tcp://127.0.0.1:0', topics=b'')", "await s.receive_many()"),
    "push": ("sp.Push0()", "await s.send(b'to nobody')"),
    "send message": ("sp.raw.Pair1()", "await s.send_message(sp.Message(b'to nobody', bytes(4)))"),
    "survey": ("sp.Surveyor0(deadline=100)", "[answer async for answer in s.survey(b'to nobody')]"),
    "device": ("sp.raw.Pair0()", "async with sp.raw.Pair0() as other: await sp.device.device(s, other)"),
    "block": ("sp.Sub0(listen='tcp://127.0.0.1:0')", "await trio.sleep_forever()"),
}


@posix_only
async def test_ctrl_c_ends_any_wait_within_a_second() -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    took: dict[str, float] = {}

    async def interrupt(name: str, socket: str, wait: str) -> None:
        url = f"tcp://127.0.0.1:{silent.socket.getsockname()[1]}"
        async with start_script(_INTERRUPTED.format(socket=socket, wait=wait), url) as script:
            await script.hear("ready")
            began = time.monotonic()
            script.process.send_signal(signal.SIGINT)
            await script.hear("interrupted")
            took[name] = time.monotonic() - began  # the end of the interpreter is not ours
            await script.process.wait()
            assert script.process.returncode == 0, name

    with trio.fail_after(100):  # for all of them, on a busy machine
        async with silent:
            limit = trio.CapacityLimiter(2)  # more would wait for each other on a small machine
            async with trio.open_nursery() as nursery:

                async def one(name: str) -> None:
                    async with limit:
                        await interrupt(name, *_WAITS[name])

                for name in _WAITS:
                    nursery.start_soon(one, name)
    assert took.keys() == _WAITS.keys()
    assert max(took.values()) < 1, took


@posix_only
async def test_a_script_heeds_ctrl_c_though_the_tests_were_started_in_the_background() -> None:
    # As the shell does for a command with an & behind it.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with start_script(_INTERRUPTED.format(socket="sp.Bus0()", wait="await trio.sleep_forever()")) as script:
            signal.signal(signal.SIGINT, handler)
            with trio.fail_after(20):
                await script.hear("ready")
                script.process.send_signal(signal.SIGINT)
                await script.hear("interrupted")
    finally:
        signal.signal(signal.SIGINT, handler)


_AT_EACH_CALL = """
import sys, sp, trio, warnings

HOME = sp.__file__.rpartition("/")[0]
left = 0

def interrupt(frame, event, argument):
    global left
    if event == "call" and frame.f_code.co_filename.startswith(HOME):
        left -= 1
        if left == 0:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

async def main():
    async with sp.Rep0(listen=sys.argv[1]) as rep, sp.Req0() as req, sp.Push0() as push, trio.open_nursery() as nursery:

        async def answer():
            async for request in rep.requests():
                await request.reply(request.body)

        nursery.start_soon(answer)
        events = req.events()
        await req.dial(rep.url)
        await req.request(b"x")
        await anext(events)
        nursery.start_soon(push.send, b"to nobody")
        await trio.lowlevel.checkpoint()
        rep.pipes[0].close()
        await req.request(b"y")
        nursery.cancel_scope.cancel()

STEP = int(sys.argv[2])
count = STEP
while left <= 0:
    left = count
    sys.setprofile(interrupt)
    try:
        trio.run(main)
    except* KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    count += STEP
print("interrupted", count // STEP, "times")
"""


@posix_only
@pytest.mark.parametrize(("url", "step"), [("inproc://x", 7), ("ws://127.0.0.1:0", 23)])
async def test_ctrl_c_breaks_into_no_call_of_ours(url: str, step: int) -> None:
    with trio.fail_after(100):
        script = await run_script(_AT_EACH_CALL, url, str(step))
    assert (script.returncode, script.stderr.decode()) == (0, "")
    assert int(script.stdout.split()[1]) > 50


_ASKED = """
import sys, sp, trio

async def authorize(pipe):
    signal.raise_signal(signal.SIGINT)
    print("not interrupted")

def redial(error):
    signal.raise_signal(signal.SIGINT)
    print("not interrupted")

async def main():
    async with sp.Req0(should_redial=redial, dial="inproc://nobody") if sys.argv[1] == "redial" else sp.Rep0(authorize=authorize, dial="inproc://x"):
        async with sp.Req0(listen="inproc://x") as req:
            await trio.sleep_forever()

try:
    trio.run(main)
except KeyboardInterrupt:
    print("interrupted")
"""


@posix_only
@pytest.mark.parametrize("asked", ["authorize", "redial"])
async def test_ctrl_c_interrupts_what_the_application_gives_us_to_call(asked: str) -> None:
    with trio.fail_after(60):
        script = await run_script(_ASKED, asked)
    assert (script.stdout, script.stderr.decode()) == (b"interrupted\n", "")


# Forgotten sockets.

_FORGOTTEN = """
import gc, sys, sp, trio, trio.testing

async def main():
    rep = await sp.Rep0(listen=["tcp://127.0.0.1:0", "inproc://x"]).__aenter__()
    req = await sp.Req0(dial=[rep.listeners[0].url, "inproc://x", "inproc://nobody"]).__aenter__()
    await rep.wait_for_peers(2)
    await req.wait_for_peers(2)
    await req.send(b"x")
    assert await rep.receive() == b"x"
    del rep, req
    gc.collect()
    await trio.testing.wait_all_tasks_blocked(0.01)
    print("still running", flush=True)
    sys.stderr.flush()
    import os
    os._exit(0)  # trio itself has no orderly end for a block that was entered by hand and never left

trio.run(main)
"""

_ABANDONED = """
import gc, queue, sys, sp, trio, trio.testing

todo = queue.SimpleQueue()
ready = False

async def main():
    global ready
    async with (
        sp.Rep0(listen=["tcp://127.0.0.1:0", "inproc://x"]) as rep,
        sp.Req0(dial=[rep.listeners[0].url, "inproc://x", "inproc://nobody"]) as req,
        sp.Pub0(listen="tcp://127.0.0.1:0") as pub,
        sp.Sub0(dial=pub.url, topics=b"") as sub,
    ):
        await req.wait_for_peers(2)
        await req.send(b"x")
        assert await rep.receive() == b"x"
        await pub.wait_for_peers()
        await pub.send(b"y")
        ready = True
        await trio.sleep_forever()

trio.lowlevel.start_guest_run(main, run_sync_soon_threadsafe=todo.put, done_callback=print)
while not ready:
    todo.get()()
gc.collect()
print("the end", flush=True)
"""

_NEVER_ENTERED = """
import gc, sp, trio, trio.testing

sockets = [sp.Req0(dial="tcp://127.0.0.1:1"), sp.Rep0(listen="tcp://127.0.0.1:0"), sp.Pub0(), sp.Sub0(topics=b""), sp.Bus0()]
sockets[0].close()
trio.run(sockets[1].aclose)
del sockets
gc.collect()
keep = sp.Rep0(), sp.Req0()
print("the end", flush=True)
"""


async def test_a_socket_that_is_dropped_without_being_closed_says_so_and_breaks_nothing() -> None:
    with trio.fail_after(10):
        result = await run_script(_FORGOTTEN, flags=("-W", "always"))
    assert result.returncode == 0
    assert result.stdout.split(b"\n") == [b"still running", b""]
    errors = result.stderr.decode()
    for name in ("Rep0", "Req0"):
        assert f"ResourceWarning: <{name} open pipes=2 inbox=0> was never closed" in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


async def test_a_program_that_ends_with_sockets_open_ends_without_a_hang_or_a_traceback() -> None:
    with trio.fail_after(10):
        result = await run_script(_ABANDONED, flags=("-W", "always"))
    assert (result.returncode, result.stdout) == (0, b"the end\n")
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr


async def test_a_socket_that_was_never_entered_needs_no_closing() -> None:
    with trio.fail_after(10):
        result = await run_script(_NEVER_ENTERED)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"the end\n", b"")


# Fork.

_FORKING = """
import gc, os, signal, sys, threading, sp, trio, trio.testing

def check(condition, what):
    if not condition:
        print("child:", what, flush=True)
        os._exit(1)

def refused(call):
    # At once: the event loop is the parent's as well, and a turn of it would take what has arrived for the parent.
    try:
        call.send(None)
    except sp.StateError as error:
        return "fork" in str(error)
    return False

def use_inherited(bus, rep, events):
    for name, call in (
        ("send", bus.send(b"from the child")), ("receive", bus.receive()), ("listen", rep.listen("tcp://127.0.0.1:0")),
        ("dial", bus.dial(sys.argv[1])), ("wait_for_peers", rep.wait_for_peers()),
        ("next event", anext(events)), ("next request", anext(rep.requests())),
    ):
        check(refused(call), name)

async def use_fresh():
    with trio.fail_after(10):
        async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0(dial=rep.url) as req:
            await req.send(b"fresh")
            check(await rep.receive() == b"fresh", "fresh sockets")

async def child(bus, rep, events):
    use_inherited(bus, rep, events)
    try:
        bus.send_nowait(b"from the child")
    except sp.StateError:
        pass
    else:
        check(False, "send_nowait")
    bus.close()
    rep.close()
    failed = []
    thread = threading.Thread(target=lambda: trio.run(use_fresh))
    threading.excepthook = failed.append
    thread.start()
    thread.join()
    check(not failed, f"fresh sockets: {failed}")
    del bus, rep
    gc.collect()

async def main():
    tls = sp.TLSClientConfig(ca=sys.argv[3]) if sys.argv[1].startswith(("tls", "wss")) else None
    async with sp.Bus0(tls=tls) as bus, sp.Rep0(listen="tcp://127.0.0.1:0") as rep:
        events = bus.events()
        await bus.dial(sys.argv[1])
        await bus.send(b"before")
        pid = os.fork()
        if not pid:
            try:
                await child(bus, rep, events)
                os._exit(0)
            finally:
                os._exit(2)
        _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
        print("child ended with", os.waitstatus_to_exitcode(status), flush=True)
        await bus.send(b"after")
        assert await bus.receive() == b"go on"
        pid = os.fork()
        if not pid:
            try:
                signal.alarm(30)
                signal.pause()
            finally:
                os._exit(2)
        await bus.send(b"forked")
        assert await bus.receive() == b"close"
        if sys.argv[2] == "at once":
            bus.close()
    print("closed", flush=True)
    sys.stdin.readline()
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL  # it lived until now
    print("the end", flush=True)

trio.run(main)
"""


@posix_only
@pytest.mark.parametrize("close", ["in order", "at once"])
@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp", "ipc", "ws", "wss"])
async def test_a_forked_child_cannot_use_what_it_inherited_and_its_parents_peers_notice_nothing(
    scheme: str, close: str, tmp_path: Path
) -> None:
    url = f"ipc://{tmp_path}/s" if scheme == "ipc" else f"{scheme}://127.0.0.1:0"
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority().pem)
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        events = bus.events()
        with trio.fail_after(20):
            async with start_script(_FORKING, bus.url, close, str(ca)) as script:
                await expect(events, sp.EventKind.ATTACHED)
                assert await bus.receive() == b"before"
                await script.hear("child ended with 0")
                assert await bus.receive() == b"after"
                (pipe,) = bus.pipes
                assert pipe.error is None
                assert pipe.statistics().messages_received == 2  # nothing came from the child

                await bus.send(b"go on")
                assert await bus.receive() == b"forked"
                await bus.send(b"close")
                # Although the second child holds a copy of the descriptor.
                event = await expect(events, sp.EventKind.DETACHED)
                assert isinstance(event.error, sp.PeerClosed)
                await script.hear("closed")
                await script.tell("")
                await script.hear("the end")


# Descriptors.

_EXHAUSTED = """
import logging, os, resource, socket, sys, sp, trio, trio.testing

class Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []
    def emit(self, record):
        self.messages.append(record.getMessage())

records = Records()
logging.getLogger("sp").addHandler(records)
attempts = 0

class CountingSocket(socket.socket):
    def accept(self):
        global attempts
        attempts += 1
        return super().accept()

def hoard():
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return taken

async def ask(rep, url, body):
    async with sp.Req0() as req:
        await req.dial(url)
        await req.send(body)
        assert await rep.receive() == body

async def main():
    global attempts
    # Virtual time goes on only while every task waits: a listener or a dialer that spins would stop it for ever.
    async with sp.Rep0() as rep, sp.Req0() as dialing:
        before, socket.socket = socket.socket, CountingSocket
        listener = await rep.listen(sys.argv[1])
        socket.socket = before
        place = listener.url.partition("://")[2]
        host, _, port = place.rpartition(":")
        clients = [socket.socket(socket.AF_INET if host == "127.0.0.1" else socket.AF_UNIX) for _ in range(3)]
        await ask(rep, listener.url, b"before")
        events = rep.events()

        taken = hoard()
        for client in clients:
            client.connect((host, int(port)) if host == "127.0.0.1" else place)
        dialer = await dialing.dial(listener.url, wait=False)
        attempts = 0
        await trio.sleep(60)
        assert 100 <= attempts <= 1000, attempts
        assert len(records.messages) == 1, records.messages
        assert "Too many open files" in records.messages[0], records.messages
        assert listener.statistics().accepted == 1
        assert 3 <= dialer.statistics().attempts <= 40, dialer.statistics()
        assert "Too many open files" in str(dialer.error), dialer.error

        for descriptor in taken:
            os.close(descriptor)
        with trio.fail_after(61):
            await dialing.wait_for_peers()
            await dialing.send(b"dialed")
            assert await rep.receive() == b"dialed"
            await ask(rep, listener.url, b"after")
        assert listener.statistics().accepted == 6, listener.statistics()
        for client in clients:
            client.close()
        await trio.sleep(11)
        assert len(records.messages) == 1, records.messages

        # A second time of need has a warning of its own.
        late = socket.socket(socket.AF_INET if host == "127.0.0.1" else socket.AF_UNIX)
        taken = hoard()
        late.connect((host, int(port)) if host == "127.0.0.1" else place)
        await trio.sleep(10)
        assert len(records.messages) == 2, records.messages
        for descriptor in taken:
            os.close(descriptor)
        await trio.sleep(10)
        assert listener.statistics().accepted == 7
        late.close()
    print("recovered")

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))
"""


@posix_only
@pytest.mark.skipif(sys.platform != "linux", reason="relies on how Linux counts descriptors")
@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
async def test_without_free_descriptors_no_task_spins_one_warning_is_given_and_all_recovers(scheme: str, tmp_path: object) -> None:
    with trio.fail_after(30):
        result = await run_script(_EXHAUSTED, "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/s")
    assert result.stderr == b""
    assert (result.returncode, result.stdout) == (0, b"recovered\n")
