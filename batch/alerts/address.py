"""Where signed JSON is posted to: an address, and the secret that both sides share."""

import datetime

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ledgerbeam.batch.alerts.post import post
from ledgerbeam.batch.alerts.webhook import EVENT_HEADER, SIGNATURE_HEADER, sign
from ledgerbeam.io.secrets import Secret


class Webhook(BaseModel):
    """An address to which events are posted, signed as `ledgerbeam.batch.alerts.webhook` says.

    Attributes:
        url: `http://` or `https://`, or a reference to it.
        secret: that signs the events.
        timeout_seconds: for one try.
        allow_private: whether the URL's host may have an address that isn't public: one of this
            machine, of its network, or of a cloud's own services.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    secret: Secret
    timeout_seconds: float = Field(default=10.0, gt=0, le=300)
    allow_private: bool = False

    @field_validator("url")
    @classmethod
    def _is_web_address(cls, url: str) -> str:
        if url.startswith(("env:", "file:")):
            return str(Secret(url))
        if not url.startswith(("http://", "https://")):
            raise ValueError("give http://…, https://…, or the whole as env:NAME or file:PATH")
        if "@" in url.split("/")[2]:
            raise ValueError("no user or password in it: requests are signed")
        return url

    def resolve(self) -> tuple[str, str]:
        """The URL and the secret that signs.

        Raises:
            SecretError: a reference can't be resolved.
        """
        url = self.url if self.url.startswith("http") else Secret(self.url).resolve()
        return url, self.secret.resolve()

    def send(self, event: str, body: bytes, now: datetime.datetime) -> None:
        """Post an event once.

        Args:
            event: its id, the same at every try.
            body: JSON.
            now: the present time, with its zone; the try is signed with it.

        Raises:
            DeliveryError: the receiver didn't take it.
            SecretError: the secret can't be had.
        """
        url, secret = self.resolve()
        headers = {EVENT_HEADER: event, SIGNATURE_HEADER: sign(secret, event, body, now)}
        post(url, body, headers, self.timeout_seconds, self.allow_private)
