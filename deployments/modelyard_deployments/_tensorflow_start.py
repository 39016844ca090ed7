# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's import: without Keras unless it is needed, and without notices in the replica's log."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from modelyard_deployments._gpu import has_gpu

_NOTICES: Final = (
    r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:|E\d{4} .*Unable to register \w+ factory"
)
"""Lines that importing writes whatever the log level is: which instructions it uses, that there is no GPU."""
_FILTER: Final = """
import re, sys
is_notice = re.compile(sys.argv[1].encode()).match
for line in sys.stdin.buffer:
    if not is_notice(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""
_LEAVING_S: Final = 1.0


def import_tensorflow() -> Any:
    """The module ``tensorflow``."""
    if "tensorflow" not in sys.modules:
        # What goes wrong is raised as well; only why a GPU cannot be used is in the log alone.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if has_gpu() else "3")
        with _without_notices(), _without_keras():
            import tensorflow
    import tensorflow

    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # else each load tells that its function is old
    return tensorflow


def import_keras() -> Any:
    """The module ``keras``, on TensorFlow whatever the user's configuration of Keras says."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import_tensorflow()
    import keras

    return keras


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """TensorFlow imports Keras, and that scikit-learn, for what a graph does not need: 40 % of its start, and 90 MB."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        yield
    finally:
        del sys.modules["keras"]


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Leads the process's stderr through a filter.

    A process of its own, since the last words of an import that aborts (this machine lacks AVX) would stay in a buffer.
    """
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", _FILTER, _NOTICES]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=kept, stderr=kept)  # noqa: S603  # this text
    assert process.stdin is not None  # noqa: S101  # it was asked for
    os.dup2(process.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        process.stdin.close()
        # A process that somebody started meanwhile may hold the other end: then it is filtered as long as that lives.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVING_S)
