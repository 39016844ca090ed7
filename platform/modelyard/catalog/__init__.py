# SPDX-License-Identifier: Apache-2.0
"""The durable truth about models, revisions, traffic and events."""

from modelyard.catalog.catalog import Catalog
from modelyard.catalog.records import (
    EventRecord,
    ModelEntry,
    ModelRecord,
    Owner,
    RevisionRecord,
    VersionEntry,
    Wanted,
)
from modelyard.catalog.revisions import compare
from modelyard.catalog.traffic import STABLE

__all__ = [
    "STABLE",
    "Catalog",
    "EventRecord",
    "ModelEntry",
    "ModelRecord",
    "Owner",
    "RevisionRecord",
    "VersionEntry",
    "Wanted",
    "compare",
]
