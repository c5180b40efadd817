"""What people ask of a study while it runs: the state they want, a version for lost updates, wishes; time driven."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

STUDIES = "hpsearch_studies"


def upgrade() -> None:
    """A wish to cancel becomes a requested state; the time that studies were driven is estimated."""
    op.add_column(STUDIES, sa.Column("requested", sa.String(16)))
    op.add_column(STUDIES, sa.Column("version", sa.BigInteger, nullable=False, server_default="1"))
    op.add_column(STUDIES, sa.Column("created_by", sa.String(255), nullable=False, server_default=""))
    op.add_column(STUDIES, sa.Column("resumed_at", sa.Double))
    op.add_column(STUDIES, sa.Column("driven_seconds", sa.Double, nullable=False, server_default="0"))
    op.add_column(STUDIES, sa.Column("driven_at", sa.Double))
    studies = sa.table(STUDIES, *map(sa.column, ("requested", "cancel_requested", "state", "driven_at", "started_at")))
    running = studies.c.state == "running"
    op.execute(studies.update().where(running, studies.c.cancel_requested).values(requested="cancelled"))
    # Up to now the wall clock went on from the start: what runs keeps counting from there.
    op.execute(studies.update().where(running).values(driven_at=studies.c.started_at))
    op.drop_column(STUDIES, "cancel_requested")
    op.create_table(
        "hpsearch_wishes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("study", sa.String(63), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("params", sa.Text),
        sa.Column("number", sa.Integer),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Back to a wish to cancel; other wishes are lost."""
    op.add_column(STUDIES, sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()))
    studies = sa.table(STUDIES, *map(sa.column, ("requested", "cancel_requested")))
    op.execute(studies.update().where(studies.c.requested == "cancelled").values(cancel_requested=sa.true()))
    for column in ("requested", "version", "created_by", "resumed_at", "driven_seconds", "driven_at"):
        op.drop_column(STUDIES, column)
    op.drop_table("hpsearch_wishes")
