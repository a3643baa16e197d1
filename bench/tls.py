"""What TLS costs: for each message, for each connection, in memory, and when a thousand clients
come at once."""

from __future__ import annotations

import gc
import resource
from bisect import bisect
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles
from time import sleep
from typing import Any

import trio
import trio.testing
import trustme

from bench.harness import Line, Peer, Plan, Row, Side, compare, hear, in_turn, plainly, ratio, two_processes
from bench.sides import HOST, SERVER_NAME, Papers, nng, openssl, ours, slow
from sp import Rep0

_KIB = 1024
_SMALL = 64
# Together with its header within the default limit.
_LARGE = {"64 KiB": 64 * _KIB, "1 MiB": (1 << 20) - 64}
_REQUESTS = 16
_WARM_UP = 10
_DELAY = 0.05
_WINDOW = 20
_AT_A_TIME = 25
_ATTACHED_WITHIN = 30.0


@cache
def papers() -> Papers:
    """Return throwaway certificates: both ends verify as by default, and sessions are resumed."""
    ca = trustme.CA()
    server, client = ca.issue_cert(SERVER_NAME, HOST), ca.issue_cert("client@bench.invalid")
    return Papers(ca.cert_pem.bytes(), server.private_key_and_cert_chain_pem.bytes(), client.private_key_and_cert_chain_pem.bytes())


def _kinds() -> dict[str, Papers]:
    """Return the certificates for first and for further connections, without and with client
    certificates."""
    resumed = papers()
    both = replace(resumed, client_certificates=True)
    return {
        "full": replace(resumed, session_reuse=False),
        "resumed": resumed,
        "full, client certificates": replace(both, session_reuse=False),
        "resumed, client certificates": both,
    }


def _with_tls(server: Side, client: Side, *arguments: object) -> Any:
    own = papers()
    return two_processes(trio.run, partial(server, papers=own), partial(client, papers=own), *arguments)


# By the message.


def rtt(plan: Plan) -> list[Row]:
    """Measure round trips between two processes, encrypted and not."""
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(_with_tls, ours.echo, ours.ask, _SMALL, plan.seconds),
            "trio-sp over tcp": partial(two_processes, trio.run, ours.echo, ours.ask, _SMALL, plan.seconds),
            "pynng on trio": partial(_with_tls, nng.echo, nng.ask, _SMALL, plan.seconds),
        },
    )
    return compare("round trips", "/s", results, **{"trio-sp_over_tcp": 0.75})


def oneway(plan: Plan) -> list[Row]:
    """Measure what one subscriber receives from a publisher that does not wait for it."""
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(_received, ours.publish, ours.subscribe, _SMALL, plan.seconds, False),
            "pynng on trio": partial(_received, nng.publish, nng.subscribe, _SMALL, plan.seconds),
        },
    )
    return [Row("received", median(results["trio-sp"]), "/s", at_least=250_000), *compare("received", "/s", results)]


def _received(publish: Side, subscribe: Side, *arguments: object) -> float:
    _, rate, *_ = _with_tls(publish, subscribe, *arguments)
    return float(round(rate))


def oneway_large(plan: Plan) -> list[Row]:
    """Measure large messages one way: several requests under way with empty replies; and encryption
    alone."""
    rows: list[Row] = []
    for name, size in _LARGE.items():
        arguments = (size, plan.seconds, _REQUESTS)
        results = in_turn(
            plan.runs,
            {
                "trio-sp": partial(_poured, ours, *arguments),
                "pynng on trio": partial(_poured, nng, *arguments),
                "pyOpenSSL in memory": partial(_through_memory, plan),
            },
        )
        rows += compare(f"{_REQUESTS} requests of {name} under way", "MB/s", results, pynng_on_trio=2.5, pyOpenSSL_in_memory=0.5)
    return rows


def _poured(side: Any, *arguments: object) -> float:
    return megabytes(_with_tls(side.take_requests, side.request_in_parallel, *arguments))


def _through_memory(plan: Plan) -> float:
    with Peer(plainly, openssl.through_memory, plan.seconds, papers()) as process:
        return megabytes(process.get())


def megabytes(rate: float) -> float:
    return round(rate / 1e6, 1)


# By the connection.


def connect(plan: Plan) -> list[Row]:
    """Measure the time from dialing to the first reply on loopback, with a new socket each time."""
    times = 30 if plan.quick else 100
    sides = {kind: partial(_first_replies, ours, times, own) for kind, own in _kinds().items()}
    results = in_turn(plan.runs, {**sides, "pynng on trio": partial(_first_replies, nng, times, _kinds()["full"])})
    return [
        _beside(results, "full", "pynng on trio", at_most=1 / 3),
        _beside(results, "resumed", "full"),
        _beside(results, "resumed, client certificates", "full, client certificates", at_most=0.6),
    ]


def _beside(results: dict[str, list[float]], kind: str, peer: str, at_most: float | None = None) -> Row:
    own, theirs = results[kind], results[peer]
    return Row(f"first reply, {kind}", median(own), "ms", peer, median(theirs), ratio(own, theirs), at_most=at_most)


def _first_replies(side: Any, times: int, own: Papers) -> float:
    echo, ask = partial(side.echo, papers=own), partial(side.connect, papers=own)
    return _typical(two_processes(trio.run, echo, ask, _WARM_UP + times)[_WARM_UP:], own)


def _typical(connections: list[tuple[float, bool]], own: Papers) -> float:
    """Return the median in ms; nearly all connections have to be of the kind that *own* asks for."""
    is_resumed = own.session_reuse
    of_kind = [seconds for seconds, resumed in connections if resumed == is_resumed]
    if len(of_kind) < 0.9 * len(connections):
        raise AssertionError(f"only {len(of_kind)} of {len(connections)} were {'resumed' if is_resumed else 'full'}")
    return round(1e3 * median(of_kind), 3)


def delay(plan: Plan) -> list[Row]:
    """Measure the same over a line with a delay, in round trips on that line."""
    return far_away(plan, ws=False, at_most=2.2)


def far_away(plan: Plan, *, ws: bool, at_most: float) -> list[Row]:
    """Measure this over tls+tcp or wss; *at_most* is the goal without client certificates."""
    times = 3 if plan.quick else 10
    sides = {kind: partial(_far_away, ours, times, own, ws) for kind, own in _kinds().items()}
    results = in_turn(plan.runs, {**sides, "libnng": partial(_far_away, nng, times, replace(papers(), session_reuse=False), ws)})
    far = results.pop("libnng")
    return [
        Row(
            f"first reply over {2e3 * _DELAY:g} ms, {'wss' if ws else 'tls+tcp'}, {kind}",
            median(runs),
            "round trips",
            "pynng on trio, full",
            median(far),
            at_most=None if "certificates" in kind and not ws else at_most,
        )
        for kind, runs in results.items()
    ]


def _far_away(side: Any, times: int, own: Papers, ws: bool) -> float:
    with Peer(trio.run, partial(side.echo, papers=own, ws=ws)) as server:
        scheme, _, port = server.get().rstrip("/").rpartition(":")
        with (
            Peer(trio.run, slow.proxy, int(port), _DELAY) as proxy,
            Peer(trio.run, partial(side.connect, papers=own, ws=ws), f"{scheme}:{proxy.get()}", 1 + times) as client,
        ):
            return round(_typical(client.get()[1:], own) / (2e3 * _DELAY), 3)


def resume(plan: Plan) -> list[Row]:
    """Measure how many reconnects resume a session, and whether connection 1,000 is as quick as
    connection 10."""
    reconnects, last = (100, 300) if plan.quick else (100, 1000)
    kinds = {kind: own for kind, own in _kinds().items() if "certificates" not in kind}
    (shares,) = in_turn(plan.runs, {"resumed": partial(_with_tls, ours.echo, ours.reconnect, reconnects)}).values()
    results = in_turn(plan.runs, {kind: partial(_ageing, last, own) for kind, own in kinds.items()})
    rows = [Row(f"of {reconnects} reconnects resumed", sum(shares) / (len(shares) * reconnects), "", at_least=0.99)]
    for kind, runs in results.items():
        young, old = ([run[key] for run in runs] for key in ("young", "old"))
        what = f"first reply, {kind}, connection {last:,}"
        rows.append(Row(what, median(old), "ms", f"connection {_WARM_UP}", median(young), ratio(old, young), at_most=1.2))
    return rows


def _ageing(last: int, own: Papers) -> dict[str, float]:
    echo, ask = partial(ours.echo, papers=own), partial(ours.connect, papers=own)
    half = _WINDOW // 2
    connections = two_processes(trio.run, echo, ask, last + half)
    return {"young": _typical(connections[:_WINDOW], own), "old": _typical(connections[-_WINDOW:], own)}


# Many of them.


async def _listen(line: Line, own: Papers) -> None:
    """Answer requests.

    When asked for a number of pipes, waits a while for them and tells how many there are. When
    asked again, tells the memory.
    """
    async with Rep0(**ours.listening(own, ws=False)) as rep, trio.open_nursery() as nursery:
        nursery.start_soon(_echo, rep)
        line.send(rep.url)
        while True:
            (wanted,) = await hear(line)
            with trio.move_on_after(_ATTACHED_WITHIN):
                while len(rep.pipes) != wanted:
                    await trio.sleep(0.005)
            line.send(len(rep.pipes))
            await hear(line)
            line.send(held())


async def _echo(rep: Rep0) -> None:
    while True:
        await rep.send(await rep.receive())


def held() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def memory(plan: Plan) -> list[Row]:
    """Measure a listener's memory for each idle pipe that was used once; it keeps more if all came
    at once."""
    few, many = numbers = (200, 1000)
    gradual, sudden = in_turn(
        plan.runs,
        {"trio-sp": lambda: _idle_pipes(numbers, _AT_A_TIME), "trio-sp, all at once": lambda: _idle_pipes((many,), many)},
    ).values()
    return [
        Row(f"memory a pipe, {few:,} of them", median(run[few] for run in gradual), "KiB", at_most=48),
        Row(f"memory a pipe, {many:,} of them", median(run[many] for run in gradual), "KiB", at_most=48),
        Row(f"memory a pipe, {many:,} of them that came all at once", median(run[many] for run in sudden), "KiB"),
    ]


def _idle_pipes(numbers: tuple[int, ...], at_a_time: int) -> dict[int, float]:
    own = papers()
    with Peer(trio.run, _listen, own) as listener, Peer(trio.run, openssl.crowd, _port(listener.get()), own) as crowd:
        crowd.get()
        result: dict[int, float] = {}
        before = _settle(listener, crowd, 1)
        there = 1
        for number in numbers:
            while there < number:
                there = min(there + at_a_time, number)
                held = _settle(listener, crowd, there)
            result[number] = round((held - before) / (number - 1) / _KIB, 2)
        return result


def _settle(listener: Peer, crowd: Peer, number: int) -> int:
    """Open *number* pipes and use each once; return the listener's memory."""
    crowd.ask(number, True)
    crowd.ask("go")
    attached = listener.ask(number)
    if attached != number:
        raise AssertionError(f"{attached} pipes are attached, not {number}")
    return int(listener.ask("memory"))


def storm(plan: Plan) -> list[Row]:
    """Measure the round trips of one pipe while a thousand newcomers make their handshakes."""
    newcomers = 200 if plan.quick else 1000
    (runs,) = in_turn(plan.runs, {"trio-sp": lambda: _storm(newcomers, plan.seconds)}).values()
    calm = [run["calm"] for run in runs]
    names = {"median": 10, "at the median moment": None, "99th percentile": None, "maximum": None}
    return [
        Row(f"of {newcomers:,} handshakes at once, attached", min(run["attached"] for run in runs), "", at_least=newcomers),
        *(
            Row(f"round trip meanwhile, {name}", median(own), "us", "undisturbed, median", median(calm), ratio(own, calm), at_most=limit)
            for name, limit in names.items()
            for own in [[run[name] for run in runs]]
        ),
    ]


def _storm(newcomers: int, seconds: float) -> dict[str, float]:
    own = papers()
    with Peer(trio.run, _listen, own) as listener:
        url = listener.get()
        with (
            Peer(trio.run, ours.keep_asking, url, _SMALL, own) as established,
            Peer(trio.run, openssl.crowd, _port(url), own) as crowd,
        ):
            established.get()
            crowd.get()
            established.ask("begin")
            sleep(seconds)
            calm = established.ask("end")
            crowd.ask(newcomers, False)
            established.ask("begin")
            crowd.ask("go")
            attached = listener.ask(1 + newcomers)
            during = established.ask("end")
    trips = {
        "calm": median(calm),
        "median": median(during),
        "at the median moment": _at_median_moment(during),
        "99th percentile": quantiles(during, n=100)[-1],
        "maximum": max(during),
    }
    return {"attached": attached - 1, **{name: round(1e6 * seconds) for name, seconds in trips.items()}}


def _at_median_moment(durations: list[float]) -> float:
    """Return the median, weighted by time: short ones are many, but at any moment a long one is
    more likely to be under way."""
    durations = sorted(durations)
    return durations[bisect(list(accumulate(durations)), sum(durations) / 2)]
