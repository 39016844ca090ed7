# SPDX-License-Identifier: Apache-2.0
"""Brings a catalog's database to the tables that this Modelyard knows, by Alembic.

Each change of ``schema`` has a script of its own in ``versions/``; none of them is ever edited again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from modelyard.errors import InvalidConfig

_FIRST: Final = "0001"
"""What was there before Alembic; such a database has a row ``schema_version`` in ``meta`` instead."""
_FIRST_VERSION: Final = 2


def migrate(connection: Connection) -> None:
    """Makes what is missing, in the transaction of this connection.

    Raises:
        InvalidConfig: A newer Modelyard has written the database.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if unknown := sorted(set(found) - known):
        _refuse(max(known), unknown[-1])
    if not found and inspect(connection).has_table("meta"):
        version = connection.execute(text("SELECT value FROM meta WHERE key = 'schema_version'")).scalar()
        if version is not None and int(version) > _FIRST_VERSION:
            _refuse(_FIRST_VERSION, version)
        command.stamp(config, _FIRST)
    command.upgrade(config, "head")


def _refuse(known: object, found: object) -> None:
    expected = f"expected a database with schema version {known} or older"
    raise InvalidConfig((f"catalog.url: {expected}, got version {found}",))
