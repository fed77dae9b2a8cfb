"""A topic's messages posted to a Kafka broker that really runs: killed, hung, and read again."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.world import NAME, SECONDS, TOPIC, World, check_posted, world
from tests.support.kafka_broker import KafkaBroker, kafka_broker
from tests.support.pages import ROOT

from ledgerbeam.messages.books.forecast import standings
from ledgerbeam.messages.consumer.dead_letters import dead_letters
from ledgerbeam.messages.sinks.kafka import ID_HEADER
from ledgerbeam.messages.sinks.sinks import KafkaSink

pytestmark = pytest.mark.kafka

Posted = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = f"sqlite:///{tmp_path}/bank.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("new_schema")()
    with world(url, tmp_path) as made:
        yield made


@pytest.fixture
def kafka_topic(broker: KafkaBroker, request: pytest.FixtureRequest) -> str:
    """A topic with four partitions, for one test."""
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    name = re.sub(r"[^\w.-]", "-", request.node.name)[:200]
    admin = AdminClient({"bootstrap.servers": broker.address})
    for made in admin.create_topics([NewTopic(name, 4, 1)]).values():
        made.result(SECONDS)
    return name


def read(broker: KafkaBroker, topic: str) -> Posted:
    """All that is in a topic, in the order of each partition; a customer is in one of them."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": broker.address, "group.id": topic, "enable.auto.commit": False}
    )
    found: Posted = []
    places: dict[bytes, set[int]] = {}
    for partition in range(4):
        place = TopicPartition(topic, partition)
        first, end = consumer.get_watermark_offsets(place, timeout=SECONDS)
        place.offset = first
        consumer.assign([place])
        while first < end:
            message: Any = consumer.poll(SECONDS)
            assert message is not None
            assert message.error() is None, message.error()
            first = message.offset() + 1
            (number,) = [value for name, value in message.headers() if name == ID_HEADER]
            places.setdefault(message.key(), set()).add(partition)
            body = json.loads(message.value())
            assert message.key().decode() == body["customer"]
            found.append((number.decode(), body))
    consumer.close()
    assert all(len(partitions) == 1 for partitions in places.values())
    return found


def test_messages_are_keyed_by_customer_and_in_order(
    bank: World, broker: KafkaBroker, kafka_topic: str
) -> None:
    bank.declare(KafkaSink(brokers=broker.address, topic=kafka_topic))
    bank.send(200, payers=20)
    assert bank.post_all() == f"{NAME}: 200 messages posted, 0 tries failed\n"
    posted = read(broker, kafka_topic)
    check_posted(posted, 200, 20)
    assert len(posted) == 200
    assert bank.books()[1:] == (200, 200, 0, 0)
    assert standings(bank.database)[0].lag == 0


def test_a_message_that_is_too_large_is_a_dead_letter(
    bank: World, broker: KafkaBroker, kafka_topic: str
) -> None:
    bank.declare(KafkaSink(brokers=broker.address, topic=kafka_topic))
    bank.send(1, first=0, amount="1" * 1_100_000)
    bank.send(9, first=1)
    assert "9 messages posted, 1 tries failed" in bank.post_all()
    (letter,) = dead_letters(bank.database, NAME)
    assert letter.key == "K0"
    assert bank.books()[1:] == (10, 9, 1, 0)
    numbers = sorted(body["message"]["number"] for _, body in read(broker, kafka_topic))
    assert numbers == list(range(1, 10))


def points() -> list[str]:
    """The failpoints that a sink's process passes when nothing fails."""
    files = [*(ROOT / "messages/sinks").glob("*.py"), ROOT / "messages/consumer/progress.py"]
    texts = "\n".join(file.read_text() for file in files)
    return sorted({*re.findall(r'failpoint\("([\w.-]+)"\)', texts)} - {"sink.retried"})


@pytest.mark.parametrize("point", points())
def test_nothing_is_lost_wherever_the_process_is_killed(
    point: str, new_schema: Callable[[], str], tmp_path: Path, broker: KafkaBroker, kafka_topic: str
) -> None:
    with world(new_schema(), tmp_path) as made:
        made.declare(KafkaSink(brokers=broker.address, topic=kafka_topic))
        made.send(60)
        assert made.start(point=point, lease=2).wait(SECONDS) == -signal.SIGKILL
        made.start(lease=4)
        made.wait(lambda: made.books().handled == 60, "all is posted")
        posted = read(broker, kafka_topic)
        check_posted(posted, 60)
        if point == "sink.posted":
            assert len(posted) > 60  # what was posted and not recorded came again


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_nothing_is_lost_when_the_broker_is_gone_for_a_while(
    fault: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "kafka").mkdir()
    with kafka_broker(tmp_path / "kafka") as own, world(new_schema(), tmp_path) as made:
        made.declare(KafkaSink(brokers=own.address, topic=TOPIC))
        made.send(20)
        process = made.start(lease=4)
        made.wait(lambda: made.books().handled == 20, "the first ones")
        own.kill() if fault == "kill" else own.stop()
        made.send(100, first=20, payers=40)
        select = "SELECT count(*) FROM ledgerbeam_parked WHERE tries > 0"

        def failed() -> int:
            with made.database.begin("tries") as connection:
                return int(connection.exec_driver_sql(select).scalar_one())

        made.wait(lambda: failed() > 0, "a try that fails")
        own.start() if fault == "kill" else own.go_on()
        made.wait(lambda: made.books().handled == 120, "all is posted")
        process.terminate()
        assert process.wait(SECONDS) == 0
        posted = read(own, TOPIC)
        assert {body["message"]["number"] for _, body in posted} == set(range(120))
        for payer in {body["customer"] for _, body in posted}:
            ids = dict.fromkeys(number for number, body in posted if body["customer"] == payer)
            numbers = [int(number.rpartition("-")[2]) for number in ids]
            assert numbers == sorted(numbers)
