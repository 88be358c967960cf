"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "changes",
        sa.Column("change", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("author_verified", sa.Boolean, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String(64), nullable=True),
        sa.Column("request_digest", sa.String(80), nullable=True),
        sa.UniqueConstraint("name", "revision", name="changes_name_revision"),
        sa.UniqueConstraint("request_id", name="changes_request_id"),
    )
    op.create_table(
        "heads",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("change", sa.BigInteger, sa.ForeignKey("changes.change"), nullable=False),
    )
    op.create_index("heads_namespace_name", "heads", ["namespace", "name"])
    state = op.create_table(
        "state",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("last_change", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="state_one_row"),
    )
    op.bulk_insert(state, [{"id": 1, "last_change": 0}])
