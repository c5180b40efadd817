"""What each study that is driven has use for, what it holds, and what its share is."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

STUDIES = "hpsearch_studies"


def upgrade() -> None:
    """Studies that are driven now say so with their next heartbeat."""
    op.add_column(STUDIES, sa.Column("cluster", sa.String(255)))
    op.add_column(STUDIES, sa.Column("wanted", sa.Integer))
    op.add_column(STUDIES, sa.Column("held", sa.Integer, nullable=False, server_default="0"))
    op.add_column(STUDIES, sa.Column("per_device", sa.Integer))
    op.add_column(STUDIES, sa.Column("share", sa.Integer))
    op.add_column(STUDIES, sa.Column("turned_at", sa.Double))


def downgrade() -> None:
    """Forget it."""
    for column in ("cluster", "wanted", "held", "per_device", "share", "turned_at"):
        op.drop_column(STUDIES, column)
