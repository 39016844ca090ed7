# SPDX-License-Identifier: Apache-2.0
"""Patches of a kustomization: JSON patches (RFC 6902) and merge patches, as far as a RayService takes them.

A merge patch replaces whole lists: Kustomize knows no keys of the lists in a custom resource.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from modelyard.errors import InvalidConfig

Item = dict[str, Any]

_NAMES: Final = ("group", "version", "kind", "name")
_OPERATIONS: Final = ("add", "replace", "remove")
_TERM: Final = re.compile(r"([\w./-]+)(?:={1,2}([\w.-]*))?")
"""Of a selector of labels: ``key`` or ``key=value``."""


def refuse(where: str, what: str) -> NoReturn:
    """Something of an overlay is not read.

    Raises:
        InvalidConfig: Always.
    """
    raise InvalidConfig((f"--overlay: {where}: {what}",))


def patch(items: Sequence[Item], changes: Sequence[Any], target: Mapping[str, Any] | None, where: str) -> list[Item]:
    """The objects with a patch, those that it is for changed in place; without those that it takes away.

    Args:
        items: Objects.
        changes: The documents of the patch; the operations of a JSON patch are one of them.
        target: Which objects it is for; None where it says so itself.
        where: Of the patch, for messages.

    Raises:
        InvalidConfig: It is of a kind that is not read.
    """
    kept = list(items)
    for change in changes:
        if target is None and not isinstance(change, Mapping):
            refuse(where, "expected a target, got none")
        chosen = [item for item in kept if _is_for(_selector(change) if target is None else target, item, where)]
        if not isinstance(change, Mapping):
            for operation in change or ():
                for item in chosen:
                    _apply(item, operation, where)
        elif change.get("$patch") == "delete":
            kept = [item for item in kept if all(item is not one for one in chosen)]
        else:
            for item in chosen:
                _merge(item, _without_name(change), where)
    return kept


def _selector(change: Mapping[str, Any]) -> Mapping[str, str]:
    """What a patch without a target is for: the object that it names."""
    names = (("kind", change.get("kind")), ("name", change.get("metadata", {}).get("name")))
    return {key: re.escape(str(name)) for key, name in names}


def _without_name(change: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a target, what a patch calls itself counts for nothing."""
    others = {key: value for key, value in change.items() if key not in ("apiVersion", "kind", "metadata")}
    metadata = {key: value for key, value in change.get("metadata", {}).items() if key not in ("name", "namespace")}
    return {**others, "metadata": metadata}


def _is_for(target: Mapping[str, Any], item: Item, where: str) -> bool:
    if unknown := set(target) - {*_NAMES, "labelSelector"}:
        refuse(where, f"target.{min(unknown)} is not read: expected some of {', '.join(_NAMES)}, labelSelector")
    group, _, version = str(item.get("apiVersion")).rpartition("/")
    own = {"group": group, "version": version, "kind": item["kind"], "name": item["metadata"]["name"]}
    if any(target.get(key) and not re.fullmatch(target[key], own[key]) for key in _NAMES):
        return False
    return _has_labels(item, target.get("labelSelector", ""), where)


def _has_labels(item: Item, selector: str, where: str) -> bool:
    labels = item["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        found = _TERM.fullmatch(term.strip())
        if found is None:
            refuse(where, f'target.labelSelector: expected label or label=value, got "{term}"')
        if found[1] not in labels or found[2] not in (None, labels[found[1]]):
            return False
    return True


def _merge(value: Item, change: Mapping[str, Any], where: str) -> None:
    for key, new in change.items():
        if key.startswith("$"):
            refuse(where, f"{key} inside a patch is not read")
        if new is None:
            value.pop(key, None)
        elif isinstance(new, Mapping):
            # Also where nothing is there yet: what is inside may take keys away.
            inner = value.get(key)
            value[key] = inner if isinstance(inner, dict) else {}
            _merge(value[key], new, where)
        else:
            value[key] = copy.deepcopy(new)


def _apply(document: Any, operation: Mapping[str, Any], where: str) -> None:
    kind, path = operation.get("op"), str(operation.get("path"))
    if kind not in _OPERATIONS:
        refuse(where, f"op: {kind} is not read: expected one of {', '.join(_OPERATIONS)}")
    try:
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])
        for key in parents:
            document = document[int(key) if isinstance(document, list) else key]
        if isinstance(document, list):
            _change_list(document, last, operation)
            return
        if kind != "add" and last not in document:
            raise KeyError(last)
        if kind == "remove":
            del document[last]
        else:
            document[last] = copy.deepcopy(operation["value"])
    except (KeyError, IndexError, TypeError, ValueError):
        refuse(where, f"{kind} {path}: there is no such place, or no value")


def _change_list(items: list[Any], last: str, operation: Mapping[str, Any]) -> None:
    index = len(items) if last == "-" else int(last)
    if not 0 <= index <= len(items):
        raise IndexError(index)
    if operation["op"] != "add":
        del items[index]
    if operation["op"] != "remove":
        items.insert(index, copy.deepcopy(operation["value"]))
