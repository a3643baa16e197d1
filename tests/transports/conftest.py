"""New URLs of every scheme."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

_names = itertools.count(1)


@pytest.fixture(params=["tcp", "tls+tcp", "ipc", "abstract", "inproc", "ws", "wss", "ws+unix"])
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def new_url(scheme: str, tmp_path: Path) -> Callable[[], str]:
    """A factory of addresses to listen on: ``listener.url`` then has the one to dial."""

    def make() -> str:
        name = f"{os.getpid()}-{next(_names)}"
        return {
            "tcp": "tcp://127.0.0.1:0",
            "tls+tcp": "tls+tcp://127.0.0.1:0",
            "ipc": f"ipc://{tmp_path}/{name}",
            "abstract": f"abstract://sp-test-{name}",
            "inproc": f"inproc://{name}",
            "ws": f"ws://127.0.0.1:0/{name}",
            "wss": f"wss://127.0.0.1:0/{name}",
            "ws+unix": f"ws+unix://{tmp_path}/{name}:/{name}",
        }[scheme]

    return make
