# SPDX-License-Identifier: Apache-2.0
"""Rollouts, shadow copies, and when a revision was promoted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the columns; what has all traffic now was promoted when it was made."""
    op.add_column("models", sa.Column("rollout", sa.JSON))
    op.add_column("models", sa.Column("shadow", sa.JSON))
    op.add_column("revisions", sa.Column("promoted_at", sa.String(32)))
    op.execute(
        "UPDATE revisions SET promoted_at = created_at WHERE EXISTS (SELECT 1 FROM traffic WHERE traffic.model = "
        "revisions.model AND traffic.revision = revisions.number AND traffic.weight = 100)"
    )
    op.drop_table("meta")  # Alembic keeps the version from now on
