"""A Kafka broker on this machine, in KRaft mode: broker and controller in one process.

`make kafka-test` fetches what it needs.
"""

import os
import signal
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".cache" / "kafka"
_SECONDS = 90
_SETTINGS = """
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller}
log.dirs={data}
num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


class KafkaBroker:
    """A broker that can be killed and started again.

    Attributes:
        address: HOST:PORT for clients.
    """

    def __init__(self, folder: Path) -> None:
        assert (HOME / "stamp").exists(), f"{HOME} isn't there: make kafka-test makes it"
        port, controller = _free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self._folder = folder
        self._settings = folder / "server.properties"
        text = _SETTINGS.format(port=port, controller=controller, data=folder / "data")
        self._settings.write_text(text)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        storage = ["format", "--cluster-id", cluster, "--config", str(self._settings)]
        subprocess.run(
            [*_java(), "kafka.tools.StorageTool", *storage], check=True, capture_output=True
        )
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_java(), "kafka.Kafka", str(self._settings)],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        end = time.monotonic() + _SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-3_000:]
            assert time.monotonic() < end, "the broker doesn't come up"
            time.sleep(0.1)

    def stop(self) -> None:
        """Have it hang: it keeps its connections, and says nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on after `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with -9."""
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        from confluent_kafka.admin import AdminClient

        try:
            metadata = AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(
                timeout=2
            )
        except Exception:
            return False
        return bool(metadata.brokers)


@contextmanager
def kafka_broker(folder: Path) -> Iterator[KafkaBroker]:
    """A broker that is gone afterwards."""
    broker = KafkaBroker(folder)
    try:
        yield broker
    finally:
        broker.kill()


def _java() -> list[str]:
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    return ["java", "-Xmx384m", quiet, "-cp", f"{HOME / 'libs'}{os.sep}*"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
