"""What tests of this folder share."""

import pytest

from stillhouse.data.language import language_of


@pytest.fixture(scope="session", autouse=True)
def _languages() -> None:
    """Its model takes two seconds to load, once."""
    language_of("a")
