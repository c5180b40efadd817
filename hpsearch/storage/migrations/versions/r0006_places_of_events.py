"""A study's events are found in their order, all of them and those of a kind: not by looking at everybody's."""

from alembic import op

revision = "0006"
down_revision = "0005"

EVENTS = "hpsearch_events"


def upgrade() -> None:
    """The new ones begin as the old one does, which is of no more use."""
    op.create_index("ix_hpsearch_events_study_id", EVENTS, ["study", "id"])
    op.create_index("ix_hpsearch_events_study_kind_id", EVENTS, ["study", "kind", "id"])
    op.drop_index("ix_hpsearch_events_study", EVENTS)


def downgrade() -> None:
    """As it was."""
    op.create_index("ix_hpsearch_events_study", EVENTS, ["study"])
    for index in ("ix_hpsearch_events_study_id", "ix_hpsearch_events_study_kind_id"):
        op.drop_index(index, EVENTS)
