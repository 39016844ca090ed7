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
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; by default those of platform.yaml")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="the same")
    parser.add_argument("--all", action="store_true", help="those of frameworks.yaml; their extras must be installed")
    parsed = parser.parse_args(arguments)
    names = FRAMEWORKS if parsed.all else (*parsed.names, *parsed.only) or PLATFORM
    if unknown := sorted(set(names) - EXAMPLES.keys()):
        parser.error(f"expected some of {', '.join(EXAMPLES)}, got {', '.join(unknown)}")
    for path in make_examples_apart(parsed.directory, names):
        sys.stdout.write(f"trained {path}\n")


if __name__ == "__main__":
    main()
