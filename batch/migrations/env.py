"""What Alembic runs to migrate: on the connection, and in the transaction, that it is given.

A new version is a module in `versions/` that spells out its steps, as the first one does, and is
named in `registry_schema.HEAD`. A test holds what migrations make equal to `registry_schema`.
"""

from alembic import context

from ledgerbeam.batch.registry_schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
