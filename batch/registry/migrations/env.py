"""What Alembic runs to migrate: on the connection, and in the transaction, that it is given.

A new version is a module in `versions/` that spells out its steps, as the first one does, and is
named in `schema.HEAD`. A test holds what migrations make equal to `schema.whole_metadata`.
"""

from alembic import context

from ledgerbeam.batch.registry.schema import metadata

# Constraints that a migration leaves without a name get it by the convention of the metadata.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
