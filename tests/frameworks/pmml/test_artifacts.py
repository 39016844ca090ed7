# SPDX-License-Identifier: Apache-2.0
"""Documents that are damaged, foreign or reach out fail to load with a sentence that says why."""

from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import load_model


@pytest.fixture
def document(tmp_path: Path, trainers: Any) -> Path:
    trainers("pmml")["tree"](tmp_path)
    return tmp_path / "model.pmml"


def _refusal(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("pmml", path.parent, {})
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"  \n", "the file is empty"),
        (b"hello", "a document that is no XML: syntax error"),
        (bytes(100), "a document that is no XML"),
        (b"{}", "a document that is no XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a document that is no XML"),
        (b"<html/>", "XML with the root element <html>"),
        (b'<PMML version="4.4"><Header/><DataDictionary/></PMML>', "expected a model that can be evaluated, got none"),
    ],
)
def test_other_content_is_refused(document: Path, content: bytes, reason: str) -> None:
    document.write_bytes(content)
    message = _refusal(document)
    assert message.startswith("model.pmml: ")
    assert reason in message


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_document_is_refused(document: Path, part: float) -> None:
    data = document.read_bytes().rstrip()
    document.write_bytes(data[: int(len(data) * part)])
    assert "a document that is no XML" in _refusal(document)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE PMML SYSTEM "http://127.0.0.1:9/pmml.dtd">',
        '<!DOCTYPE PMML [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE PMML [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    ],
)
def test_document_type_is_refused(document: Path, doctype: str) -> None:
    document.write_text(document.read_text().replace("<PMML ", f"{doctype}<PMML "))
    assert "expected PMML without a document type" in _refusal(document)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("TreeModel", "TimeSeriesModel"),  # a kind that the evaluator does not know
        ('operator="lessOrEqual"', 'operator="resembles"'),
        ('field="petal_width"', 'field="nosuch"'),
    ],
)
def test_document_that_cannot_be_evaluated_is_refused(document: Path, old: str, new: str) -> None:
    text = document.read_text()
    assert old in text
    document.write_text(text.replace(old, new))
    assert _refusal(document).startswith("model.pmml: ")


def test_margin_that_is_no_number_is_refused(tmp_path: Path, trainers: Any) -> None:
    trainers("pmml")["every_data_type"](tmp_path)
    document = tmp_path / "model.pmml"
    document.write_text(document.read_text().replace('leftMargin="1"', 'leftMargin="one"'))
    assert "an Interval's margin is no number" in _refusal(document)


def test_heap_that_is_too_small_is_refused(document: Path) -> None:
    with pytest.raises(InvalidConfig, match="heap_mb"):
        load_model("pmml", document.parent, {"heap_mb": 1})
