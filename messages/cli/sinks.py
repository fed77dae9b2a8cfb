"""`ledgerbeam messages sink` and `sinks`: where else the messages of a topic are posted to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.cli.options import (
    Database,
    Json,
    open_database,
    read_moment,
    show_table,
)

if TYPE_CHECKING:
    from ledgerbeam.messages.sinks.sinks import Definition, Sink


def sink(
    topic: Annotated[str, typer.Argument(help="name of a topic")],
    database: Database,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="post each message to this address; or its reference"),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(metavar="REFERENCE", help="what signs them: env:NAME or file:PATH"),
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="the address may be none of the internet")
    ] = False,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT,…", help="post the messages to Kafka")
    ] = None,
    kafka_topic: Annotated[
        str | None, typer.Option(help="its name in Kafka; by default the same")
    ] = None,
    kafka_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="an option of librdkafka; secrets as references"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="of the sink; by default TOPIC-to-webhook or TOPIC-to-kafka")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="a new sink begins with what was posted since, as 2026-11-20T08:00Z"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Have the messages of a topic posted to Kafka or to a webhook too, by `ledgerbeam consume`."""
    from ledgerbeam.messages.model.message import to_microseconds
    from ledgerbeam.messages.sinks.sinks import declare_sink

    if (webhook is None) == (kafka is None):
        raise ParameterError("give one of --webhook and --kafka", parameter="--webhook")
    if webhook is not None:
        if secret is None:
            raise ParameterError(
                "--secret is missing: give env:NAME or file:PATH of the secret that the receiver "
                "shares",
                parameter="--secret",
            )
        given: dict[str, Any] = {"url": webhook, "secret": secret, "allow_private": allow_private}
    else:
        options = dict(map(_option, kafka_option or ()))
        given = {"brokers": kafka, "topic": kafka_topic or topic, "options": options}
    kind = "webhook" if webhook is not None else "kafka"
    definition = _definition(kind, given)
    begins = None if since is None else to_microseconds(read_moment(since, "--since"))
    with open_database(database) as opened, opened.begin("the sink") as connection:
        declared = declare_sink(connection, topic, name or f"{topic}-to-{kind}", definition, begins)
    _show([declared], as_json)


def sinks(database: Database, as_json: Json = False) -> None:
    """List the sinks; `status` says how far each is behind."""
    from ledgerbeam.messages.sinks.sinks import sinks as all_sinks

    with open_database(database) as opened, opened.begin("the sinks") as connection:
        found = all_sinks(connection)
    _show(found, as_json)


def _definition(kind: str, given: dict[str, Any]) -> "Definition":
    from ledgerbeam.messages.sinks.sinks import KafkaSink, WebhookSink

    try:
        if kind == "webhook":
            return WebhookSink.model_validate(given)
        return KafkaSink.model_validate(given)
    except ValidationError as error:
        # Without the value, which may be a secret in a wrong place.
        (first, *_) = error.errors(include_input=False)
        told = str(first["msg"]).removeprefix("Value error, ")
        place = "".join(f" {part}" for part in first["loc"])
        raise ParameterError(f"--{kind}{place}: {told}", parameter=f"--{kind}") from None


def _option(text: str) -> tuple[str, str]:
    name, is_pair, value = text.partition("=")
    if not is_pair:
        raise ParameterError(
            "--kafka-option: give NAME=VALUE", parameter="--kafka-option"
        )  # without the text, which may be a secret
    return name, value


def _show(found: "Sequence[Sink]", as_json: bool) -> None:
    rows = [
        (each.consumer.name, each.topic, each.definition.kind, each.definition.target)
        for each in found
    ]
    heads = ("sink", "topic", "kind", "target")
    records = [dict(zip(heads, row, strict=True)) for row in rows]
    show_table(heads, rows, as_json, "sink", records)
