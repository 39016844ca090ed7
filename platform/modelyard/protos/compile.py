# SPDX-License-Identifier: Apache-2.0
"""Makes ``descriptors.bin`` and the ``.pyi`` files from the ``.proto`` files: ``python -m modelyard.protos.compile``.

Needs ``grpcio-tools``, which nothing else does.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


def compile_protos(into: Path) -> int:
    """Runs protoc.

    Args:
        into: Gets ``modelyard/protos/*.pyi``, and ``descriptors.bin`` beside them.

    Returns:
        protoc's exit status.
    """
    from grpc_tools import protoc  # only here: a tool for development

    folder = into / "modelyard" / "protos"
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path) for path in FOLDER.glob("*.proto"))
    include = files("grpc_tools") / "_proto"
    options = [f"--proto_path={ROOT}", f"--proto_path={include}"]
    made = [f"--descriptor_set_out={folder / 'descriptors.bin'}", f"--pyi_out={into}"]
    return int(protoc.main(["protoc", *options, *made, *sources]))


if __name__ == "__main__":
    sys.exit(compile_protos(ROOT))
