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

__all__ = ["Catalog", "EventRecord", "ModelEntry", "ModelRecord", "Owner", "RevisionRecord", "VersionEntry", "Wanted"]
