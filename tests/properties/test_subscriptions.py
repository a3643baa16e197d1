"""Subscriptions against a set that is searched from end to end."""

from __future__ import annotations

from itertools import product
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sp.protocols.sub import Subscriptions

ALPHABET = b"\0a\xfe\xff"
BODIES = [bytes(body) for size in range(5) for body in product(ALPHABET, repeat=size)]

prefixes = st.lists(st.sampled_from(ALPHABET), max_size=4).map(bytes)
changes = st.lists(st.tuples(st.booleans(), prefixes), max_size=40)


@settings(deadline=None, max_examples=200)
@given(changes)
def test_they_match_what_begins_with_one_of_them(changes: list[tuple[bool, bytes]]) -> None:
    subscriptions, model = Subscriptions(), set[bytes]()
    for add, prefix in changes:
        if add:
            assert subscriptions.add(prefix) is (prefix not in model)
            model.add(prefix)
        else:
            assert subscriptions.remove(prefix) is (prefix in model)
            model.discard(prefix)
        assert bool(subscriptions) is bool(model)
    for body in BODIES:
        assert subscriptions.match(body) is any(body.startswith(prefix) for prefix in model)


@settings(deadline=None)
@given(st.sets(prefixes), st.randoms(use_true_random=False))
def test_they_match_nothing_once_all_are_removed_in_any_order(added: set[bytes], random: Random) -> None:
    subscriptions, left = Subscriptions(), sorted(added)
    for prefix in left:
        subscriptions.add(prefix)
    random.shuffle(left)
    while left:
        assert subscriptions.match(left[-1] + b"\xff")
        assert subscriptions.remove(left.pop())
    assert not subscriptions
    assert not any(map(subscriptions.match, BODIES))
