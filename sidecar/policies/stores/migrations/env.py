"""Run by Alembic; the connection comes from `migrate`."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # With SQLite, too: the transaction is begun by hand there.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
