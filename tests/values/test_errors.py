"""Errors as values: what another process gets of them."""

from __future__ import annotations

import pickle

import pytest

import sp

ERRORS = [
    *(kind("why") for kind in vars(sp).values() if isinstance(kind, type) and issubclass(kind, sp.Error) and kind is not sp.UpgradeRefused),
    sp.UpgradeRefused("why", sp.HTTPResponse(503, "later")),
    sp.PipeRefused("why", sp.HTTPResponse(403), kind=sp.RefusalKind.NO_ROOM),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_can_be_pickled_with_all_that_it_tells(error: sp.Error) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error) == "why"
    assert vars(again) == vars(error)
