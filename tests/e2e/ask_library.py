# SPDX-License-Identifier: Apache-2.0
"""`ask_library.py FRAMEWORK ARTIFACT QUESTIONS ANSWERS`: what a framework's library itself answers from an artifact.

A process of its own, since some of the libraries cannot be imported into one. QUESTIONS is a file with a pickled list
of arrays by input name; ANSWERS gets a list of the outputs' arrays, by name or by number where the library has none.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from load_tests.direct import LIBRARIES


def to_arrays(answer: Any) -> dict[str, np.ndarray]:
    """One array for each output; where the library gives no names, by number."""
    if hasattr(answer, "columns"):  # a data frame
        return {name: answer[name].to_numpy() for name in answer.columns}
    if isinstance(answer, Mapping):
        return {str(name): _to_array(one) for name, one in answer.items()}
    outputs = answer if isinstance(answer, list | tuple) else [answer]
    return {str(index): np.asarray(one) for index, one in enumerate(outputs)}


def _to_array(one: Any) -> np.ndarray:
    """An output, or the single value that PMML answers a single row with: a number or one of Java's texts."""
    if hasattr(one, "shape"):
        return np.asarray(one)
    return np.array([float(one) if isinstance(one, float) else str(one)])


def main() -> None:
    framework, artifact, questions, answers = sys.argv[1:]
    asked = pickle.loads(Path(questions).read_bytes())
    found = [to_arrays(LIBRARIES[framework](Path(artifact), inputs)()) for inputs in asked]
    Path(answers).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
