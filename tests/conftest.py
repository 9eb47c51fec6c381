"""Fixtures that several tests use."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Our own messages, without the type checker of the tests in front of them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
