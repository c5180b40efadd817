"""How far each webhook has been told."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """The events are the outbox; a webhook only keeps its place in them."""
    op.create_table(
        "hpsearch_webhooks",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("last_event", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", sa.Double, nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_table("hpsearch_webhooks")
