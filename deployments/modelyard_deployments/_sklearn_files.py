# SPDX-License-Identifier: Apache-2.0
"""scikit-learn: from a file to an estimator, and what to say where that fails."""

from __future__ import annotations

import logging
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError

_LOG: Final = logging.getLogger(__name__)


def load_pickle(path: Path) -> Any:
    """The estimator in a joblib or pickle file; one line is logged where another version of scikit-learn saved it.

    Raises:
        ModelLoadError: Unpickling failed; says why as far as the file tells.
    """
    import joblib
    import sklearn
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InconsistentVersionWarning)
        try:
            estimator = joblib.load(path)
        except Exception as exc:  # unpickling runs the file's own code, so it can raise anything
            raise ModelLoadError(_explain_pickle(path, exc, sklearn.__version__)) from exc
    _log_warnings(path.name, caught, InconsistentVersionWarning, sklearn.__version__)
    return estimator


def _log_warnings(name: str, caught: list[warnings.WarningMessage], kind: type[Warning], installed: str) -> None:
    messages: list[Any] = [item.message for item in caught if isinstance(item.message, kind)]
    versions = {str(message.original_sklearn_version) for message in messages}
    if versions:
        _LOG.warning(
            "%s was saved by scikit-learn %s and is loaded by %s: check its answers, or set runtime.version",
            name,
            ", ".join(sorted(versions)),
            installed,
        )


def _explain_pickle(path: Path, exc: Exception, installed: str) -> str:
    written = _find_pickled_version(path)
    versions = f"saved by scikit-learn {written or 'of unknown version'}, installed is {installed}"
    missing = exc.name if isinstance(exc, ModuleNotFoundError) and exc.name else ""
    if missing and missing.split(".")[0] != "sklearn":
        return (
            f'{path.name} refers to the module "{missing}", which is not installed here: '
            "name the package that holds it in the model's runtime.pip"
        )
    if isinstance(exc, AttributeError) and "__main__" in str(exc):
        return f"{path.name} refers to a class or function of the script that saved it ({exc}): move it into a module"
    if missing or isinstance(exc, (AttributeError, ImportError)) or (written and written != installed):
        return f"{path.name} cannot be loaded by this version of scikit-learn ({versions}): {exc}{_advise(written)}"
    return f"{path.name} is no complete joblib or pickle file ({versions}): {type(exc).__name__}: {exc}"


def explain_version(path: Path) -> str:
    """What to add where a loaded estimator does not work: nothing, or that another version has saved it."""
    import sklearn

    written = _find_pickled_version(path)
    if written in (None, sklearn.__version__):
        return ""
    return f" (saved by scikit-learn {written}, installed is {sklearn.__version__}{_advise(written)})"


def _advise(written: str | None) -> str:
    return f'; with `runtime: {{version: "{written}"}}` it runs in that' if written else ""


def _find_pickled_version(path: Path) -> str | None:
    """The scikit-learn version in a pickle's bytes, found without unpickling.

    Source: scikit-learn ``base.py``, ``BaseEstimator.__getstate__`` adds ``_sklearn_version``.
    """
    data = path.read_bytes()
    if data[:1] == b"\x78":  # joblib's default compression
        try:
            data = zlib.decompressobj().decompress(data)
        except zlib.error:
            return None
    found = re.search(rb"_sklearn_version.{0,12}?(\d+\.\d+[\w.]*)", data, re.DOTALL)
    return found[1].decode() if found else None


def load_skops(path: Path, trusted_types: Sequence[str]) -> Any:
    """The estimator in a skops file, which runs no code of its own.

    Raises:
        ModelLoadError: It is damaged, or holds types that are not trusted.
    """
    import sklearn
    import skops.io

    try:
        untrusted = sorted(set(skops.io.get_untrusted_types(file=path)) - set(trusted_types))
        if not untrusted:
            return skops.io.load(path, trusted=list(trusted_types))
    except Exception as exc:  # the file's content decides what is raised: bad zip, bad JSON, missing attributes
        raise ModelLoadError(
            f"{path.name} cannot be loaded by skops {skops.__version__} with scikit-learn {sklearn.__version__}: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    raise ModelLoadError(
        f"{path.name} holds untrusted types: {', '.join(untrusted)}; "
        "if you trust them, name them in the option trusted_types"
    )
