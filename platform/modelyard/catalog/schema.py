# SPDX-License-Identifier: Apache-2.0
"""Tables of the catalog, in SQL that SQLite and PostgreSQL share.

``migrations`` makes them. Times are ISO 8601 texts in UTC, so they sort and read the same everywhere.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

metadata: Final = MetaData()

models: Final = Table(
    "models",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("owner", String(16), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("wanted", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("updated_at", String(32), nullable=False),
    Column("rollout", JSON(none_as_null=True)),
    Column("shadow", JSON(none_as_null=True)),
)

revisions: Final = Table(
    "revisions",
    metadata,
    Column("model", String(63), ForeignKey("models.name", ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("content", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("promoted_at", String(32)),
    PrimaryKeyConstraint("model", "number"),
)

traffic: Final = Table(
    "traffic",
    metadata,
    Column("model", String(63), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("weight", Float, nullable=False),
    PrimaryKeyConstraint("model", "revision"),
    ForeignKeyConstraint(["model", "revision"], ["revisions.model", "revisions.number"], ondelete="CASCADE"),
)

labels: Final = Table(
    "labels",
    metadata,
    Column("model", String(63), nullable=False),
    Column("label", String(63), nullable=False),
    Column("revision", BigInteger, nullable=False),
    PrimaryKeyConstraint("model", "label"),
    ForeignKeyConstraint(["model", "revision"], ["revisions.model", "revisions.number"], ondelete="CASCADE"),
)

# Without a foreign key: the history outlives the model.
events: Final = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("model", String(63), nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    sqlite_autoincrement=True,
)
