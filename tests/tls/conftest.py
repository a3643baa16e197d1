from __future__ import annotations

import pytest

from tests.tls.authority import Authority


@pytest.fixture(scope="session")
def authority() -> Authority:
    """One authority for all tests that do not change it."""
    return Authority()
