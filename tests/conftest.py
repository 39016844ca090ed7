# SPDX-License-Identifier: Apache-2.0
"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--framework",
        help="in tests/frameworks: the cases and the folder of this framework alone. Heavy ones run only so, each in a "
        "process of its own as on the platform: some of their libraries cannot be imported into one",
    )
