"""What Alembic runs to migrate: on the connection, and in the transaction, that it is given.

A new version is a module in `versions/`, and is named in `schema.HEAD`.
"""

from alembic import context

from ledgerbeam.messages.store.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
