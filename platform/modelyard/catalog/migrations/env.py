# SPDX-License-Identifier: Apache-2.0
"""What Alembic runs: the scripts, on the connection and in the transaction that it was given."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
