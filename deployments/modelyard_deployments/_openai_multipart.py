# SPDX-License-Identifier: Apache-2.0
"""Bodies of the OpenAI protocol that carry a file: ``multipart/form-data``.

Source: RFC 7578, and RFC 2046 5.1.1 for boundaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Final

from modelyard.openai import OpenAIRequest, read_disposition
from modelyard_deployments._openai_protocol import Refusal

_MULTIPART: Final = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Form:
    """A form's parts.

    Attributes:
        fields: The texts of each name, in their order.
        files: The bytes of each name that came with a file's name.
    """

    fields: dict[str, list[str]]
    files: dict[str, bytes]

    def get(self, name: str) -> str | None:
        """The last text of that name."""
        return self.fields.get(name, [None])[-1]


def is_form(content_type: str) -> bool:
    """Whether a body of that type is one."""
    return content_type.partition(";")[0].strip().lower() == _MULTIPART


def decode_form(request: OpenAIRequest) -> Form:
    """The form in a body.

    Raises:
        Refusal: It is none.
    """
    boundary = _find_boundary(request.content_type)
    form = Form({}, {})
    for head, content in _split(request.body, boundary):
        options = read_disposition(head)
        if b"name" not in options:
            raise Refusal("the body: expected a name for each part of the form", code="invalid_form")
        name = options[b"name"].decode(errors="replace")
        if b"filename" in options:
            form.files[name] = content
            continue
        try:
            form.fields.setdefault(name, []).append(content.decode())
        except UnicodeDecodeError as exc:
            raise Refusal(f"{name}: expected UTF-8 text", name) from exc
    return form


def list_names(request: OpenAIRequest) -> list[str]:
    """The names in a form, whatever there is in its parts.

    Raises:
        Refusal: It is none.
    """
    parts = _split(request.body, _find_boundary(request.content_type))
    return [read_disposition(head).get(b"name", b"").decode(errors="replace") for head, _ in parts]


def _find_boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != _MULTIPART or not isinstance(boundary, str) or not boundary:
        raise Refusal(
            f'expected a body of type {_MULTIPART} with a boundary, got "{content_type[:80]}"',
            code="invalid_content_type",
        )
    return b"--" + boundary.encode("latin-1", "replace")


def _split(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Headers and content of each part."""
    # The line break before a boundary belongs to it.
    pieces = (b"\r\n" + body).split(b"\r\n" + boundary)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Refusal("the body: expected a form that ends with its boundary", code="invalid_form")
    for piece in pieces[1:-1]:
        head, separator, content = piece.partition(b"\r\n\r\n")
        if not separator:
            raise Refusal("the body: expected headers before each part of the form", code="invalid_form")
        yield head, content
