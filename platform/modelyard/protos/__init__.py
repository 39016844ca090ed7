# SPDX-License-Identifier: Apache-2.0
"""Protobuf messages of TensorFlow Serving, without TensorFlow.

The published stubs import all of TensorFlow, and their descriptors are in the one pool of the process. Ours have the
same packages, names and numbers, so the same bytes, but a pool of their own: a replica can have both.

The ``.proto`` files are the source. ``python -m modelyard.protos.compile`` makes ``descriptors.bin`` and the ``.pyi``
files of them, which are checked in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, wrappers_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

_FOLDER: Final = "modelyard/protos/"


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for imported in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(imported.DESCRIPTOR.serialized_pb)
    for file in _read():
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _read() -> Iterable[descriptor_pb2.FileDescriptorProto]:
    """Each file after those that it imports."""
    return descriptor_pb2.FileDescriptorSet.FromString((files(__name__) / "descriptors.bin").read_bytes()).file


def publish() -> bool:
    """Puts the descriptors into the process's own pool too, where gRPC reflection looks.

    Returns:
        False where others of these names are there: in a process that has imported TensorFlow.
    """
    pool = descriptor_pool.Default()
    try:
        for file in _read():
            pool.AddSerializedFile(file.SerializeToString())
    except TypeError:
        return False
    return True


def load(name: str) -> Mapping[str, Any]:
    """What the module of one ``.proto`` file has, by name: messages, enums and their values.

    Args:
        name: The module's full name.
    """
    file = _pool().FindFileByName(f"{_FOLDER}{name.rpartition('.')[2].removesuffix('_pb2')}.proto")
    found: dict[str, Any] = {"DESCRIPTOR": file}
    for message in file.message_types_by_name.values():
        made = found[message.name] = GetMessageClass(message)
        made.__module__ = name  # so that its messages can be pickled
    for enum in file.enum_types_by_name.values():
        found[enum.name] = EnumTypeWrapper(enum)
        found.update({value.name: value.number for value in enum.values})
    return found
