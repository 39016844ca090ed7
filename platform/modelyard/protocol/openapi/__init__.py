# SPDX-License-Identifier: Apache-2.0
"""OpenAPI documents: of the whole HTTP surface, and of one model from its signature.

Builds plain dicts and does no I/O. ``operations`` is the one table of what is documented; a test holds it against the
routes that are served.

::

    operations  every route: what it takes, what it answers, which errors it has
    schemas     the JSON these routes speak
    document    the document of all of them
    example     a request that the model answers, from its signature
    model       the document of one model
"""

from modelyard.protocol.openapi.document import MAX_NAMES, build_document
from modelyard.protocol.openapi.example import Example, to_infer_example, to_predict_example
from modelyard.protocol.openapi.model import Described, build_model_document
from modelyard.protocol.openapi.operations import OPERATIONS, Operation

__all__ = [
    "MAX_NAMES",
    "OPERATIONS",
    "Described",
    "Example",
    "Operation",
    "build_document",
    "build_model_document",
    "to_infer_example",
    "to_predict_example",
]
