"""Fixtures of the NequIP tests; the others do not pay for importing NequIP."""

import pytest


@pytest.fixture(scope="module")
def nequip_state():
    """NequIP's global state while a module's tests run."""
    import nequip_cases

    with nequip_cases.nequip_state():
        yield
