"""Kafka: messages are keyed by their customers, so that a customer's are in one partition.

The producer is idempotent and waits for all replicas. Of a customer, a message is sent when the one
before it is acknowledged: none overtakes another, whatever fails.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.io.secrets import Secret, is_reference, redact
from ledgerbeam.messages.sinks.posting import Envelope, RefusedError, Sent, UnavailableError

if TYPE_CHECKING:
    from confluent_kafka import Producer

ID_HEADER = "ledgerbeam-message"
"""The header that has a message's id, by which consumers tell a repetition."""

_POLL_SECONDS = 0.05
_Error = RefusedError | UnavailableError
_log = logging.getLogger(__name__)


class KafkaPoster:
    """Posts messages to a topic of Kafka."""

    batch: ClassVar[int] = 500

    def __init__(
        self, brokers: str, topic: str, options: dict[str, str], time_limit: float
    ) -> None:
        """Make one; it connects when it is first used.

        Args:
            brokers: HOST:PORT, several separated by commas.
            topic: its name in Kafka.
            options: further ones of librdkafka, with secrets as references.
            time_limit: seconds after which a message that isn't acknowledged has failed.

        Raises:
            ParameterError: the client isn't installed.
        """
        try:
            import confluent_kafka
        except ImportError:
            raise ParameterError(
                "Kafka needs pip install 'ledgerbeam[kafka]'", parameter="--kafka"
            ) from None
        self._kafka = confluent_kafka
        self._brokers = brokers
        self._topic = topic
        self._options = options
        self._time_limit = time_limit
        self._producer: Producer | None = None
        self._making = threading.Lock()
        error = confluent_kafka.KafkaError
        self._refused = {
            error.MSG_SIZE_TOO_LARGE,
            error.INVALID_MSG_SIZE,
            error.INVALID_MSG,
            error.RECORD_LIST_TOO_LARGE,
        }

    def post(self, envelopes: Sequence[Envelope], until: float) -> Sent:
        """See `Poster.post`. What it has taken behind one that failed is posted again later."""
        errors: dict[int, _Error | None] = {}
        waiting = list(range(len(envelopes)))
        while waiting and not any(errors.values()):
            if time.monotonic() + self._time_limit > until:
                break
            first: dict[str, int] = {}
            for number in waiting:
                first.setdefault(envelopes[number].customer, number)
            wave = sorted(first.values())
            try:
                errors |= self._send({number: envelopes[number] for number in wave})
            except UserError as mistake:  # in an option, or its secret
                errors[wave[0]] = UnavailableError(str(mistake))
            waiting = [number for number in waiting if number not in first.values()]
        for number in range(len(envelopes)):
            error = errors.get(number)
            if number not in errors or error is not None:
                return Sent(number, error)
        return Sent(len(envelopes), None)

    def close(self) -> None:
        """See `Poster.close`."""
        self._producer = None

    def _send(self, envelopes: dict[int, Envelope]) -> dict[int, _Error | None]:
        """Send messages of different customers, and wait for what becomes of each."""
        producer = self._connected()
        ends: dict[int, _Error | None] = {}

        def told(number: int) -> Callable[[Any, Any], None]:
            def end(error: Any, _: Any) -> None:
                ends[number] = None if error is None else self._error(error)

            return end

        for number, envelope in envelopes.items():
            try:
                producer.produce(
                    self._topic,
                    envelope.body,
                    envelope.customer,
                    headers=[(ID_HEADER, envelope.id.encode())],
                    on_delivery=told(number),
                )
            except BufferError:
                ends[number] = UnavailableError("too much waits for the broker")
            except self._kafka.KafkaException as error:
                ends[number] = self._error(error.args[0])
        # The client itself gives up what isn't acknowledged in time.
        end = time.monotonic() + 2 * self._time_limit
        while len(ends) < len(envelopes) and time.monotonic() < end:
            producer.poll(_POLL_SECONDS)
        silent = UnavailableError(f"no acknowledgement within {self._time_limit:g} s")
        return {number: ends.get(number, silent) for number in envelopes}

    def _connected(self) -> "Producer":
        with self._making:
            if self._producer is None:
                options = {
                    name: Secret(value).resolve() if is_reference(value) else value
                    for name, value in self._options.items()
                }
                settings = {
                    "client.id": "ledgerbeam",
                    "linger.ms": 1,
                    "partitioner": "murmur2_random",  # that of Kafka's own clients
                    **options,
                    "bootstrap.servers": self._brokers,
                    "acks": "all",
                    "enable.idempotence": True,
                    "delivery.timeout.ms": int(self._time_limit * 1_000),
                }
                try:
                    self._producer = self._kafka.Producer(settings, logger=_log)
                except self._kafka.KafkaException as error:
                    raise ParameterError(
                        f"Kafka: {redact(error.args[0].str())}", parameter="--kafka-option"
                    ) from None
            return self._producer

    def _error(self, error: Any) -> _Error:
        text = f"Kafka: {redact(error.str())}"
        if error.code() in self._refused:
            return RefusedError(text)
        if error.fatal():
            self._producer = None  # it is of no use any more: the next one begins anew
        return UnavailableError(text)
