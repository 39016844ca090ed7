# SPDX-License-Identifier: Apache-2.0
"""PMML: what a document says of its fields, read before an evaluator sees it.

Elements and attributes are those of PMML 4.4, "Data Dictionary" and "Mining Schema".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from xml.parsers import expat

from modelyard.errors import ModelLoadError

_NULL_CHECKS: Final = ("isMissing", "isNotMissing")


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers that are valid; infinite where a margin is missing."""

    left: float
    right: float
    closed_left: bool
    closed_right: bool


@dataclass(slots=True)
class DataField:
    """A field of the dictionary: its valid values, as texts, and what stands for a missing one."""

    name: str
    values: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)


@dataclass(slots=True)
class Document:
    """A document's text and what it says of its fields.

    Attributes:
        text: The whole document.
        fields: The dictionary, by name.
        mining: Attributes of the model's own mining fields, by name.
        may_miss: Fields that the model asks whether they are missing, or maps to something where they are.
        misses_any: The model has a strategy for missing values of all fields.
    """

    text: str
    fields: Mapping[str, DataField]
    mining: Mapping[str, Mapping[str, str]]
    may_miss: frozenset[str]
    misses_any: bool


def read_document(data: bytes, name: str) -> Document:
    """The document in a file.

    A document type is refused: PMML needs none, and entities could name other files or grow without bound.

    Raises:
        ModelLoadError: It is no XML, no PMML, or has a document type.
    """
    if not data.strip():
        raise ModelLoadError(f"{name}: the file is empty")
    scan = _Scan(name)
    try:
        scan.parser.Parse(data, True)
    except expat.ExpatError as exc:
        raise ModelLoadError(f"{name}: expected PMML, got a document that is no XML: {exc}") from exc
    text = data.decode(scan.encoding or ("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"))
    return Document(text, scan.fields, scan.mining, frozenset(scan.may_miss), scan.misses_any)


class _Scan:
    """Listens to the parser; goes through the whole document, so that a broken one is found here."""

    def __init__(self, name: str) -> None:
        self.fields: dict[str, DataField] = {}
        self.mining: dict[str, Mapping[str, str]] = {}
        self.may_miss: set[str] = set()
        self.misses_any = False
        self.encoding: str | None = None
        self._name = name
        self._path: list[str] = []
        self._mapping: list[bool] = []
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.XmlDeclHandler = self._declare
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _declare(self, version: str, encoding: str | None, standalone: int) -> None:
        self.encoding = encoding if encoding and not encoding.lower().startswith("utf") else None

    def _refuse_doctype(self, *_: Any) -> None:
        raise ModelLoadError(f"{self._name}: expected PMML without a document type (<!DOCTYPE …>), got one; remove it")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        element = qualified.rpartition(" ")[2]
        if not self._path and element != "PMML":
            raise ModelLoadError(f"{self._name}: expected PMML, got XML with the root element <{element[:80]}>")
        self._path.append(element)
        self._mapping.append("mapMissingTo" in attributes or attributes.get("function") in _NULL_CHECKS)
        if element == "DataField":
            self.fields[attributes.get("name", "")] = DataField(attributes.get("name", ""))
        elif self._path[1:2] == ["DataDictionary"]:
            self._take_value(element, attributes)
        elif element == "MiningField" and len(self._path) == 4:
            self.mining[attributes.get("name", "")] = attributes
        else:
            self._take_missing(attributes)

    def _end(self, _: str) -> None:
        self._path.pop()
        self._mapping.pop()

    def _take_value(self, element: str, attributes: dict[str, str]) -> None:
        if not self.fields:
            return
        last = next(reversed(self.fields.values()))
        kind = attributes.get("property", "valid")
        if element == "Value" and kind == "valid":
            last.values.append(attributes.get("value", ""))
        elif element == "Value" and kind == "missing":
            last.missing.append(attributes.get("value", ""))
        elif element == "Interval":
            last.intervals.append(self._to_interval(attributes))

    def _to_interval(self, attributes: dict[str, str]) -> Interval:
        closure = attributes.get("closure", "closedClosed")
        try:
            left, right = float(attributes.get("leftMargin", "-inf")), float(attributes.get("rightMargin", "inf"))
        except ValueError as exc:
            raise ModelLoadError(f"{self._name}: an Interval's margin is no number: {exc}") from exc
        return Interval(left, right, closure.startswith("closed"), closure.endswith("Closed"))

    def _take_missing(self, attributes: dict[str, str]) -> None:
        if attributes.get("missingValueStrategy", "none") != "none":
            self.misses_any = True
        if "field" in attributes and (any(self._mapping) or attributes.get("operator") in _NULL_CHECKS):
            self.may_miss.add(attributes["field"])
