"""What a service keeps: requests, kinds, queues, turns, idempotency keys, API keys, the audit.

Tables are added, and none is changed: programs of earlier versions that have the registry open go
on. `service/store/tables.py` says what each of them is for.
"""

from collections.abc import Sequence as Several
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision: str | None = "2"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None


def upgrade() -> None:
    """Make the tables."""
    word = sa.String(16)
    time = sa.DateTime(timezone=True)
    json = sa.JSON(none_as_null=True)
    sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

    def column(name: str, type_: Any, *others: Any, **options: Any) -> sa.Column[Any]:
        return sa.Column(name, type_, *others, **{"nullable": False, **options})

    op.create_table(
        "kind",
        column("name", sa.Text, primary_key=True),
        column("description", sa.Text),
        column("parameters_schema", json),
        column("code_version", sa.Text),
        column("policy", json),
        column("seen_at", time),
    )
    op.create_table(
        "queue",
        column("kind", sa.Text, primary_key=True),
        column("changes", json),
        column("held_why", sa.Text, nullable=True),
        column("clock", sequence),
        column("version", sa.Integer),
    )
    op.create_table(
        "turn",
        column("kind", sa.Text, primary_key=True),
        column("requester", sa.Text, primary_key=True),
        column("last", sequence),
    )
    op.create_table(
        "request",
        column("sequence", sequence, primary_key=True),
        column("id", sa.Text),
        column("kind", sa.Text),
        column("verb", word),
        column("state", word),
        column("parameters", json),
        column("priority", sa.Integer),
        column("turn", sequence),
        column("requester", sa.Text),
        column("why", sa.Text),
        column("received_at", time),
        column("start_by", time, nullable=True),
        column("queued_at", time, nullable=True),
        column("started_at", time, nullable=True),
        column("ended_at", time, nullable=True),
        column("run_id", sa.Text, nullable=True),
        column("node", sa.Text, nullable=True),
        column("epoch", sa.Integer),
        column("lost", sa.Integer),
        column("lease_until", time, nullable=True),
        column("cancel_why", sa.Text, nullable=True),
        column("code", sa.Text, nullable=True),
        column("error", sa.Text, nullable=True),
        column("problems", json),
        column("version", sa.Integer),
        sa.UniqueConstraint("id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.CheckConstraint(
            "(state = 'RUNNING') = (lease_until IS NOT NULL AND node IS NOT NULL)", name="lease"
        ),
        sa.CheckConstraint(
            "(state IN ('RECEIVED', 'QUEUED', 'RUNNING')) = (ended_at IS NULL)", name="ended"
        ),
    )
    op.create_index(
        "ix_request_kind_state_priority_turn_sequence",
        "request",
        ["kind", "state", "priority", "turn", "sequence"],
    )
    op.create_index("ix_request_state_sequence", "request", ["state", "sequence"])
    op.create_index("ix_request_requester_sequence", "request", ["requester", "sequence"])
    op.create_index("ix_request_run_id", "request", ["run_id"])
    op.create_table(
        "idempotency",
        column("requester", sa.Text, primary_key=True),
        column("key", sa.Text, primary_key=True),
        column("fingerprint", sa.Text),
        column("request_id", sa.Text),
        column("expires_at", time),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"]),
    )
    op.create_index("ix_idempotency_expires_at", "idempotency", ["expires_at"])
    op.create_table(
        "audit",
        column("sequence", sequence, primary_key=True),
        column("at", time),
        column("who", sa.Text),
        column("action", sa.Text),
        column("kind", sa.Text, nullable=True),
        column("subject", sa.Text),
        column("why", sa.Text),
        column("detail", json),
    )
    op.create_index("ix_audit_subject_sequence", "audit", ["subject", "sequence"])
    op.create_table(
        "api_key",
        column("id", sa.Text, primary_key=True),
        column("secret_hash", sa.Text),
        column("name", sa.Text),
        column("roles", json),
        column("parent", sa.Text, nullable=True),
        column("created_at", time),
        column("created_by", sa.Text),
        column("expires_at", time, nullable=True),
        column("revoked_at", time, nullable=True),
        sa.ForeignKeyConstraint(["parent"], ["api_key.id"]),
    )
