"""The programs of docs/proxies.md: how to start each with its file, and what it says once it
listens.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

_IS_ROOT: Final = os.geteuid() == 0


@attrs.frozen
class Program:
    """How to start one of them."""

    port: tuple[str, str]
    """How its file writes the port, and what the tests write instead; the braces stand for the
    port."""
    ready: str
    """What it says once its ports are bound."""
    command: Callable[[str, Path, int], Sequence[str]]
    """Takes the program's path, its file and its port, and returns the command.

    It may change the file, and write others to the file's directory.
    """


def _apache(program: str, file: Path, port: int) -> Sequence[str]:
    """Write a main file as Debian has it, which includes the recipe."""
    modules = ("mpm_event", "authz_core", "headers", "proxy", "proxy_http", "ssl")
    main = file.with_name("apache2.conf")
    main.write_text(
        "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in modules)
        + ("User www-data\nGroup www-data\n" if _IS_ROOT else "")
        + f"ServerName localhost\nPidFile {file.with_name('apache2.pid')}\nErrorLog /dev/stderr\nLogLevel notice\n"
        + f"Mutex pthread\nListen 127.0.0.1:{port}\nInclude {file}\n"
    )
    return program, "-d", str(file.parent), "-f", str(main), "-DFOREGROUND"


def _caddy(program: str, file: Path, _: int) -> Sequence[str]:
    """Keep Caddy off every other port: its API, redirects from port 80, HTTP/3."""
    own = "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n\tservers {\n\t\tprotocols h1 h2\n\t}\n}\n"
    file.write_text(own + file.read_text())
    return "env", f"HOME={file.parent}", program, "run", "--adapter", "caddyfile", "--config", str(file)


def _haproxy(program: str, file: Path, _: int) -> Sequence[str]:
    return program, "-W", "-f", str(file)


def _hitch(program: str, file: Path, _: int) -> Sequence[str]:
    return program, f"--config={file}", "--log-level=2", *(["--user=nobody"] if _IS_ROOT else [])


def _nginx(program: str, file: Path, _: int) -> Sequence[str]:
    # As root, nginx would run its workers as a user who cannot read our directories.
    user = "user root; " if _IS_ROOT else ""
    return program, "-c", str(file), "-e", "stderr", "-g", f"{user}daemon off; pid {file.with_name('nginx.pid')}; error_log stderr notice;"


def _squid(program: str, file: Path, port: int) -> Sequence[str]:
    """Keep Squid out of Debian's directories, give its shared memory a name of its own, and let it
    end at once.
    """
    own = "pid_filename none\ncache_log /dev/stderr\naccess_log none\npinger_enable off\nnetdb_filename none\nvisible_hostname localhost\n"
    file.write_text(f"{file.read_text()}{own}coredump_dir {file.parent}\nshutdown_lifetime 0 seconds\n")
    return program, "-N", "-n", f"sp{port}", "-f", str(file)


def _stunnel(program: str, file: Path, _: int) -> Sequence[str]:
    return program, str(file)


def _traffic_server(program: str, file: Path, _: int) -> Sequence[str]:
    """Give Traffic Server a directory of its own, with Debian's files and the recipe's in their
    place.
    """
    own = file.with_name("traffic_server")
    shutil.copytree("/etc/trafficserver", own, dirs_exist_ok=True)
    for part in file.parent.glob("traffic_server-*"):
        shutil.copy(part, own / part.name.removeprefix("traffic_server-"))
    (own / "storage.config").write_text("")  # without a cache
    places: Mapping[str, str | Path] = {
        "prefix": own,
        "exec_prefix": "/usr",
        "bindir": "/usr/bin",
        "sbindir": "/usr/bin",
        "libdir": "/usr/lib/trafficserver",
        "libexecdir": "/usr/lib/trafficserver/modules",
        **dict.fromkeys(
            ("sysconfdir", "datadir", "includedir", "localstatedir", "runtimedir", "logdir", "mandir", "infodir", "cachedir"), own
        ),
    }
    (own / "runroot.yaml").write_text("".join(f"{name}: {place}\n" for name, place in places.items()))
    settings = {"ADMIN_USER_ID": "#-1", "CRASH_LOG_HELPER": "NULL"}
    settings |= {f"DIAGS_OUTPUT_{level}": "E" for level in ("NOTE", "WARNING", "ERROR", "FATAL", "ALERT", "EMERGENCY")}
    return "env", *(f"PROXY_CONFIG_{name}={value}" for name, value in settings.items()), program, f"--run-root={own}"


def _varnish(program: str, file: Path, _: int) -> Sequence[str]:
    """Run the command that a comment in the file shows."""
    (command,) = [line for line in file.read_text().splitlines() if line.startswith("# varnishd ")]
    return program, *shlex.split(command)[2:], "-F", "-n", str(file.with_name("varnish")), "-j", "none"


def _envoy(program: str, file: Path, _: int) -> Sequence[str]:
    # A hot restart needs shared memory, which would stay behind.
    return program, "-c", str(file), "--concurrency", "1", "--disable-hot-restart"


PROGRAMS: Final[Mapping[str, Program]] = {
    "apache2": Program(("*:443", "127.0.0.1:{}"), "resuming normal operations", _apache),
    "caddy": Program((":443", ":{}"), "serving initial configuration", _caddy),
    "envoy": Program(("address: 0.0.0.0, port_value: 443", "address: 127.0.0.1, port_value: {}"), "starting main dispatch loop", _envoy),
    "haproxy": Program(("bind :443", "bind 127.0.0.1:{}"), "Loading success.", _haproxy),
    "hitch": Program(("[*]:443", "[127.0.0.1]:{}"), "Process 0 online", _hitch),
    "nginx": Program(("listen 443", "listen 127.0.0.1:{}"), "start worker process ", _nginx),
    "squid": Program(("http_port 3128", "http_port 127.0.0.1:{}"), "Accepting HTTP Socket connections", _squid),
    "stunnel": Program(("accept = 443", "accept = 127.0.0.1:{}"), "LOG5[ui]: Configuration successful", _stunnel),
    "traffic_server": Program(("443:ssl", "{}:ssl:ip-in=127.0.0.1"), "traffic server running", _traffic_server),
    "varnishd": Program(("127.0.0.1:6081", "127.0.0.1:{}"), "said Child starts", _varnish),
}
