"""Handlers: what is done with each message of a topic, in a transaction of the consumer's."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar, get_args

import sqlalchemy as sa
from pydantic import BaseModel

from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.messages.model.message import Message
from ledgerbeam.messages.store.send import Due, Outgoing
from ledgerbeam.rules.rollout import Rollout, check_rules
from ledgerbeam.transforms.concurrency.retry import Retry

M = TypeVar("M", bound=Message)


class Work:
    """What a handler is given besides the message.

    Attributes:
        connection: to the consumer's database, in the transaction that also records that the
            message is handled. Don't commit: that is done when the handler has returned.
        message_id: the number of the message, the same in every try: give it to systems outside
            of this database, so that they can tell a repetition.
        customer: whom the message is about.
        key: the sender's name for the message; None if it gave none.
        due: when the message was due, in UTC.
        now: the present time, in UTC, of the database's clock.
        tries: how often it was tried before.
        rule: the number in the handler's `rules` of the rule that the customer has; None where
            there are no rules.
    """

    def __init__(
        self,
        connection: sa.Connection,
        message: Message,
        *,
        topic: str,
        message_id: int,
        customer: str,
        key: str | None,
        due: datetime.datetime,
        now: datetime.datetime,
        tries: int = 0,
        rule: int | None = None,
    ) -> None:
        self.connection = connection
        self.message_id = message_id
        self.customer = customer
        self.key = key
        self.due = due
        self.now = now
        self.tries = tries
        self.rule = rule
        self.outbox: list[tuple[str, Outgoing]] = []
        self._topic = topic
        self._message = message

    def publish(
        self,
        topic: str,
        message: BaseModel | Mapping[str, Any],
        *,
        due: Due | None = None,
        key: str | None = None,
    ) -> None:
        """Send a message in the handler's transaction.

        Args:
            topic: declared by `ledgerbeam messages init`.
            message: as for `schedule`.
            due: when it is due; None for now.
            key: as for `schedule`.
        """
        self.outbox.append((topic, Outgoing(message, due or self.now, key)))

    def reschedule(self, due: Due) -> None:
        """Send the same message again, to another moment: it isn't time yet, or it recurs."""
        self.publish(self._topic, self._message, due=due, key=self.key)


class MessageHandler(Generic[M]):
    """A consumer of a topic: `handle` is called with each of its messages.

        class ExpirePaymentRequest(MessageHandler[PaymentRequestDue]):
            name = "expire-payment-requests"
            topic = "payment-request-due"
            customer = "payer"

            def handle(self, message: PaymentRequestDue, work: Work) -> None:
                work.connection.execute(…)

    Messages of one customer are handled in the order of the stream, one after another. What the
    handler writes by `work.connection` is there exactly once. If it does anything else, that is
    done at least once: give `work.message_id` along.

    A message that fails is tried again later, and the later ones of its customer wait behind it;
    other customers don't. After the last try it is a dead letter, and the others go on. Each class
    is made once a process and may be called by several threads.

    Where many messages take the same statement, a handler has `handle_many` in place of `handle`:
    it is given messages of different customers, and does for all of them at once what is to be
    done.

        def handle_many(self, messages: Sequence[tuple[PaymentRequestDue, Work]]) -> None:
            requests = [message.request for message, _ in messages]
            messages[0][1].connection.execute(EXPIRE, {"requests": requests})

    A new way to handle messages can stand beside the present one, and customers come to it in
    stages. The handler then has `rules` in place of `handle`:

        def expire(self, message: PaymentRequestDue, work: Work) -> None: …

        def expire_with_notice(self, message: PaymentRequestDue, work: Work) -> None: …

        rules = {1: expire, 2: expire_with_notice}
        rollout = Rollout(stages=("1%", "10%", "100%"))

    Attributes:
        name: the consumer's name. Another name is another consumer, with a position of its own.
        topic: what it consumes.
        customer: the field of the message that names the customer.
        message_type: the model of the messages, as the class's base names it.
        retry: how often a message is tried, and how long it waits in between; errors in `never`
            (and any `UserError`) aren't tried again.
        batch: messages that are handled in one transaction at most. If one of them fails, each is
            handled in a transaction of its own. Set 1 if `handle` has effects elsewhere, which a
            roll-back wouldn't undo.
        rules: the present rule and the next one, by number: methods like `handle`, which isn't
            written then.
        rollout: how customers come from the lower number to the higher one.
        is_set_wise: whether the handler has a `handle_many` of its own.
    """

    name: ClassVar[str]
    topic: ClassVar[str]
    customer: ClassVar[str]
    message_type: ClassVar[type[Message]]
    retry: ClassVar[Retry] = Retry(tries=8, first_delay=1, longest_delay=300)
    batch: ClassVar[int] = 100
    rules: ClassVar[Mapping[int, Callable[[Any, Any, Work], None]]] = {}
    rollout: ClassVar[Rollout | None] = None
    is_set_wise: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what can be checked before anything runs."""
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, Message):
                    cls.message_type = argument
        if not hasattr(cls, "name"):
            return
        for attribute in ("topic", "customer"):
            if not hasattr(cls, attribute):
                raise DefinitionError(f"{cls.__name__}: {attribute} is missing: set it")
        if not hasattr(cls, "message_type"):
            raise DefinitionError(
                f"{cls.__name__}: its message is missing: name the model in the base, as in class "
                f"{cls.__name__}(MessageHandler[MyMessage])"
            )
        if cls.customer not in cls.message_type.model_fields:
            raise DefinitionError(
                f"{cls.__name__}: customer is {cls.customer!r}, and {cls.message_type.__name__} "
                "has no such field"
            )
        if cls.batch < 1:
            raise DefinitionError(f"{cls.__name__}: batch is {cls.batch}: give 1 or more")
        cls.is_set_wise = cls.handle_many is not MessageHandler.handle_many
        has = {
            "handle": cls.handle is not MessageHandler.handle,
            "handle_many": cls.is_set_wise,
            "rules": bool(cls.rules),
        }
        if sum(has.values()) != 1:
            found = " and ".join(name for name, is_there in has.items() if is_there)
            raise DefinitionError(
                f"{cls.__name__} has {found or 'neither handle, handle_many nor rules'}: write one "
                "of handle, handle_many and rules"
            )
        check_rules(cls.__name__, cls.rules, cls.rollout)
        if cls.rollout is not None and not cls.rollout.salt:
            cls.rollout = replace(cls.rollout, salt=f"{cls.name}/{max(cls.rules)}")

    def handle(self, message: M, work: Work) -> None:
        """Do what the message is for. It is handled if this returns, and fails if it raises.

        A handler with `rules` leaves this as it is: the rule of the customer is called. So does one
        with `handle_many`, which is called with the one message.
        """
        if self.is_set_wise:
            self.handle_many([(message, work)])
            return
        assert work.rule is not None
        self.rules[work.rule](self, message, work)

    def handle_many(self, messages: Sequence[tuple[M, Work]]) -> None:
        """Do what several messages are for, in one transaction: all are handled if this returns.

        If it raises, none is; each is then given alone, so that only those that fail by themselves
        are tried again. By default each is given to `handle`.

        Args:
            messages: one or more. Where a handler has a `handle_many` of its own, each is about
                another customer; of each customer's in their order.
        """
        for message, work in messages:
            self.handle(message, work)
