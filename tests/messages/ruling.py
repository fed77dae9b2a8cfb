"""A handler with two rules, whose customers come from the first one to the second."""

from typing import Any

from tests.messages.senders import Bank, Due, note

from ledgerbeam.messages.consumer.rollout_moves import promote
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.rules.rollout import Rollout
from ledgerbeam.transforms.concurrency.retry import Retry

ANN, BOB = "ann@laptop", "bob@laptop"
STAGES = ("list", "50%", "100%")


class Ruled(MessageHandler[Due]):
    """Notes by which rule it has handled what, and fails by the new one where it is told to."""

    customer = "payer"
    retry = Retry(tries=2, first_delay=60, longest_delay=600)

    def __init__(self) -> None:
        self.fails: set[str] = set()

    def old(self, message: Due, work: Work) -> None:
        assert work.rule is not None
        note(work.connection, self.name, f"{message.request}/{work.rule}")

    def new(self, message: Due, work: Work) -> None:
        self.old(message, work)
        if message.request in self.fails:
            raise OSError("the new rule can't")


def kind_of(bank: Bank, *numbers: int, **options: Any) -> type[Ruled]:
    """A consumer of the bank's topic with a rollout from the first rule to the second."""
    old, new = numbers or (1, 2)
    options = {"stages": STAGES, "customers": ("P1",), **options}
    rules = {old: Ruled.old, new: Ruled.new}
    name = f"ruled-{bank.topic}"
    members = {"name": name, "topic": bank.topic, "rules": rules, "rollout": Rollout(**options)}
    return type("Ruling", (Ruled,), members)


def to(bank: Bank, kind: type[Ruled], stage: str, who: str = ANN, **options: Any) -> str:
    return promote(bank.database, kind.name, stage, who=who, why="so far good", **options)


def in_table(bank: Bank, table: str) -> list[tuple[Any, ...]]:
    """Rules and moves in the bank's inbox, or among what is parked, by message."""
    return bank.rows(
        f"SELECT s.key, t.rule, t.move FROM {table} t JOIN ledgerbeam_stream s "
        "ON s.message_id = t.message_id WHERE s.topic = :topic ORDER BY s.position",
        topic=bank.topic_id,
    )
