"""Our tables. Trials are Optuna's; a study is referred to by its name, never by Optuna's id.

Times are seconds since 1970, UTC. JSON is kept as text: it is read whole, never searched.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

studies = sa.Table(
    "hpsearch_studies",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("requested", sa.String(16)),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("created_by", sa.String(255), nullable=False, server_default=""),
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("resumed_at", sa.Double),
    sa.Column("driven_seconds", sa.Double, nullable=False, server_default="0"),
    sa.Column("driven_at", sa.Double),
    sa.Column("lease_owner", sa.String(255)),
    sa.Column("lease_token", sa.BigInteger, nullable=False),
    sa.Column("lease_expires_at", sa.Double),
    sa.Column("cluster", sa.String(255)),
    sa.Column("wanted", sa.Integer),
    sa.Column("held", sa.Integer, nullable=False, server_default="0"),
    sa.Column("per_device", sa.Integer),
    sa.Column("share", sa.Integer),
    sa.Column("turned_at", sa.Double),
    sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"),
    sa.Column("claimed_at", sa.Double),
)

datasets = sa.Table(
    "hpsearch_datasets",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("format", sa.String(32), nullable=False),
    sa.Column("examples", sa.Integer, nullable=False),
    sa.Column("warnings", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

events = sa.Table(
    "hpsearch_events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("study", sa.String(63), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Index("ix_hpsearch_events_study_id", "study", "id"),
    sa.Index("ix_hpsearch_events_study_kind_id", "study", "kind", "id"),
    sqlite_autoincrement=True,
)

idempotency_keys = sa.Table(
    "hpsearch_idempotency_keys",
    metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request", sa.String(64), nullable=False),
    sa.Column("study", sa.String(63), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False, index=True),
)

wishes = sa.Table(
    "hpsearch_wishes",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("study", sa.String(63), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("params", sa.Text),
    sa.Column("number", sa.Integer),
    sqlite_autoincrement=True,
)

webhooks = sa.Table(
    "hpsearch_webhooks",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("last_event", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_at", sa.Double, nullable=False, server_default="0"),
)
