"""`/healthz`, `/readyz` and `/metrics`, for whatever keeps the service running."""

import datetime
from collections.abc import Callable, Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ledgerbeam.service.access.front import AFront, Front
from ledgerbeam.service.model import QueueRecord

router = APIRouter(tags=["operation"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(front: AFront) -> dict[str, str]:
    """Whether the request database can be reached; a problem with status 503 if not."""
    front.intake.search(limit=1)
    return {"status": "ok"}


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}}
)
def metrics(front: AFront) -> Response:
    """Depth and age of queues in Prometheus' text format; it tells nothing of parameters."""
    registry = CollectorRegistry()
    registry.register(_Queues(front))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Queues(Collector):
    """What the queues are like at the moment at which they are asked for."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        queues = self._front.intake.queues()
        now = self._front.now()
        for name, told, value in _METRICS:
            family = GaugeMetricFamily(f"ledgerbeam_queue_{name}", told, labels=["kind"])
            for queue in queues:
                family.add_metric([queue.kind], value(queue, now))
            yield family


def _age(queue: QueueRecord, now: datetime.datetime) -> float:
    return 0.0 if queue.oldest_at is None else (now - queue.oldest_at).total_seconds()


_METRICS: tuple[tuple[str, str, Callable[[QueueRecord, datetime.datetime], float]], ...] = (
    ("queued", "requests that wait in the queue of a kind", lambda q, _: q.queued),
    ("running", "requests that nodes have", lambda q, _: q.running),
    ("oldest_seconds", "for how long the oldest request has waited", _age),
    ("held", "whether nothing is taken from the queue", lambda q, _: q.held_why is not None),
)
