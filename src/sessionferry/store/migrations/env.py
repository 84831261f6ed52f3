"""Runs the migrations on the connection, and in the transaction, of `sessionferry.store.schema`."""

from alembic import context

from sessionferry.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
