"""Run by Alembic: migrate on the connection that it is handed."""

from alembic import context

from hpsearch.storage.database import VERSION_TABLE
from hpsearch.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
