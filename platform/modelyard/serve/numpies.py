# SPDX-License-Identifier: Apache-2.0
"""Arrays between processes whose numpy differs: a model in an environment of its own may have numpy 1.

numpy 2 pickles contiguous arrays by a function of its module ``numpy._core.numeric``, which numpy 1.26 does not have;
it has the same function in ``numpy.core.numeric``, a name that numpy 2 answers with a warning at each array. With
numpy 1 this process therefore has the function under its new name. With numpy 2 there is nothing to do.

Source: numpy 1.26 and 2.4, ``array_reduce_ex_picklebuffer`` in ``multiarray/methods.c``, and ``numpy/core/numeric.py``.
"""

from __future__ import annotations

import sys

import numpy as np


def share_array_pickles() -> None:
    """Arrays of either numpy unpickle here, and those pickled here elsewhere; again it changes nothing."""
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        return
    import numpy.core.numeric

    numpy.core.numeric._frombuffer.__module__ = "numpy._core.numeric"
    sys.modules.setdefault("numpy._core.numeric", numpy.core.numeric)
