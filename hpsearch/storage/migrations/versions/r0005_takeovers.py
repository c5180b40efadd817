"""How often in a row each study was taken over without getting on, and when it was claimed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

STUDIES = "hpsearch_studies"


def upgrade() -> None:
    """Counting begins now."""
    op.add_column(STUDIES, sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"))
    op.add_column(STUDIES, sa.Column("claimed_at", sa.Double))


def downgrade() -> None:
    """Forget it."""
    for column in ("takeovers", "claimed_at"):
        op.drop_column(STUDIES, column)
