# SPDX-License-Identifier: Apache-2.0
"""The command line; prints one line for each model it trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import modelyard_deployments.examples as package
from modelyard_deployments.examples import EXAMPLES, FRAMEWORKS, PLATFORM, make_examples_apart


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(prog=f"python -m {package.__name__}", description=package.__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("models"), help="where the models go")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(EXAMPLES), default=PLATFORM, metavar="NAME", help="those of platform.yaml"
    )
    parser.add_argument("--all", action="store_true", help="those of frameworks.yaml; their extras must be installed")
    parsed = parser.parse_args(arguments)
    for path in make_examples_apart(parsed.directory, FRAMEWORKS if parsed.all else parsed.only):
        sys.stdout.write(f"trained {path}\n")


if __name__ == "__main__":
    main()
