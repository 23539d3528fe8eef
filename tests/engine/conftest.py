"""What tests with a backend share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    """The `backend` that a module's tests share has empty sequences after each of them."""
    yield
    if "backend" in request.fixturenames:
        used = request.getfixturevalue("backend")
        for sequence in range(used.info.sequences):
            used.drop(sequence)
