"""A webhook: each message is one POST, signed as alerts are."""

import time
from collections.abc import Sequence
from typing import ClassVar

from ledgerbeam.batch.alerts.address import Webhook
from ledgerbeam.batch.alerts.post import DeliveryError
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.io.errors import UserError
from ledgerbeam.messages.sinks.posting import Envelope, RefusedError, Sent, UnavailableError

MAX_BODY = 1_048_576
"""Bytes of a body at most."""

# The receiver has read the message, and says that it is wrong.
_REFUSED = (400, 413, 422)


class WebhookPoster:
    """Posts messages to an address, one after another."""

    batch: ClassVar[int] = 20

    def __init__(self, webhook: Webhook, time_limit: float) -> None:
        """Make one.

        Args:
            webhook: the address and its secret.
            time_limit: seconds that the receiver has to answer.
        """
        self._webhook = webhook.model_copy(update={"timeout_seconds": time_limit})

    def post(self, envelopes: Sequence[Envelope], until: float) -> Sent:
        """See `Poster.post`."""
        for count, envelope in enumerate(envelopes):
            if time.monotonic() + self._webhook.timeout_seconds > until:
                return Sent(count, None)
            try:
                self._post(envelope)
            except (RefusedError, UnavailableError) as error:
                return Sent(count, error)
        return Sent(len(envelopes), None)

    def close(self) -> None:
        """See `Poster.close`."""

    def _post(self, envelope: Envelope) -> None:
        if len(envelope.body) > MAX_BODY:
            raise RefusedError(f"the message has more than {MAX_BODY:,} bytes")
        try:
            self._webhook.send(envelope.id, envelope.body, utc_now())
        except DeliveryError as error:
            kind = RefusedError if error.status in _REFUSED else UnavailableError
            raise kind(str(error)) from None
        except UserError as error:  # the secret
            raise UnavailableError(str(error)) from None
