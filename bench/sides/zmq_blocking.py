"""pyzmq, blocking."""

from __future__ import annotations

from time import perf_counter, sleep

import zmq

from bench.harness import Line
from bench.sides import BATCH, END, END_EVERY, HOST


def publish(line: Line, size: int, seconds: float) -> None:
    """Publish as fast as possible; tell how many messages."""
    pub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
    url = f"tcp://{HOST}"
    line.send(f"{url}:{pub.bind_to_random_port(url)}")
    pub.recv()  # the subscription
    body = bytes(size)
    sent = 0
    start = perf_counter()
    while (passed := perf_counter() - start) < seconds:
        for _ in range(BATCH):
            pub.send(body)
        sent += BATCH
    line.send((sent, sent / passed))
    while True:
        pub.send(END)
        sleep(END_EVERY)


def subscribe(line: Line, url: str, *_: object) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    sub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    sub.subscribe(b"")
    sub.connect(url)
    received = 0
    sub.recv()
    start = perf_counter()
    while sub.recv():
        received += 1
    line.send((received + 1, received / (perf_counter() - start)))


def push(line: Line, size: int, seconds: float) -> None:
    """Push as fast as possible; tell how many messages, and how many a second."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    url = f"tcp://{HOST}"
    line.send(f"{url}:{socket.bind_to_random_port(url)}")
    body = bytes(size)
    socket.send(body)  # waits for the peer
    sent = 1
    start = perf_counter()
    while (passed := perf_counter() - start) < seconds:
        for _ in range(BATCH):
            socket.send(body)
        sent += BATCH
    socket.send(END)
    line.send((sent, sent / passed))
    sleep(3600)  # until we are killed: closing would drop messages under way


def pull(line: Line, url: str, *_: object) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
    socket.connect(url)
    received = 0
    socket.recv()
    start = perf_counter()
    while socket.recv():
        received += 1
    line.send((received + 1, received / (perf_counter() - start)))
