"""The programs that run the documents' lines, and what those lines say a reader has."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def programs():
    """The folder of a reader's programs: of TOUCHSTONE_WHEEL_BIN if that is set (`checkout`: this
    environment's own), else of the wheel built from this tree, with the extras that the documents
    ask for.
    """
    named = os.environ.get("TOUCHSTONE_WHEEL_BIN")
    if named:
        return Path(sys.executable).parent if named == "checkout" else Path(named)
    from tests.make.wheel import WheelEnvironment

    return WheelEnvironment.of_this_tree().bin
