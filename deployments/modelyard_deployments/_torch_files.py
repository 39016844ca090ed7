# SPDX-License-Identifier: Apache-2.0
"""What a PyTorch file is: many kinds share the endings ``.pt`` and ``.pth``."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path

from modelyard.errors import ModelLoadError


class Kind(Enum):
    """What can be loaded."""

    SCRIPT = "TorchScript"
    EXPORT = "exported program"


def find_kind(path: Path) -> Kind:
    """Looks at the names in the archive.

    Raises:
        ModelLoadError: It is another kind of file; the message says which, and what to do.
    """
    if path.is_dir():
        raise ModelLoadError(f"{path.name}: expected a file, got a folder")
    names = _list_names(path)
    if any("aotinductor/" in name for name in names):
        raise ModelLoadError(
            f"{path.name}: the package is compiled for one kind of machine (AOTInductor); "
            "save the exported program itself with torch.export.save"
        )
    if any(name.endswith("/archive_format") or name == "serialized_exported_program.json" for name in names):
        return Kind.EXPORT
    if any(name.endswith("/constants.pkl") for name in names):
        return Kind.SCRIPT
    if any(name.endswith("/data.pkl") for name in names):
        raise ModelLoadError(_explain_pickle(path.name))
    raise ModelLoadError(f"{path.name}: an archive, but neither TorchScript nor an exported program")


def _list_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelLoadError(f"{path.name}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadError(f"{path.name}: the file is a pointer of Git LFS; fetch the model itself with git lfs pull")
    if head.startswith(b"\x80"):  # a pickle, as before PyTorch 1.6
        raise ModelLoadError(_explain_pickle(path.name))
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError) as exc:
        reason = "truncated or damaged" if head.startswith(b"PK") else "not a PyTorch file"
        raise ModelLoadError(f"{path.name}: the file is {reason}: {exc}") from exc


def _explain_pickle(name: str) -> str:
    return (
        f"{name}: made by torch.save, which keeps weights or a pickled module, and neither can run without its Python "
        "class; save the program: torch.export.save(torch.export.export(model.eval(), example_inputs), "
        '"model.pt2"), or serve the class with framework: custom'
    )
