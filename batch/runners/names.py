"""Names and labels of an attempt's job on an engine."""

import hashlib
import re

from ledgerbeam.io.commit.attempts import Attempt

_MAX_NAME_LENGTH = 63  # the limit of a DNS label, as which engines use it


def name_of_job(attempt: Attempt) -> str:
    """The name of an attempt's job on an engine, which no other attempt has.

    It is a DNS label (RFC 1123) that begins with a letter. It consists of the process and the
    instance, shortened to fit, a digest of the instance's URI, and the number of the attempt.
    """
    record = attempt.record
    digest = hashlib.sha256(attempt.instance_uri.encode()).hexdigest()[:10]
    end = f"-{digest}-{record.number}"
    label = re.sub(r"[^a-z0-9]+", "-", f"{record.process}-{record.instance}".lower())
    return label.lstrip("0123456789-")[: _MAX_NAME_LENGTH - len(end)].rstrip("-") + end


def labels_of_job(attempt: Attempt) -> list[str]:
    """Labels of an attempt's job as `KEY=VALUE`, for finding costs and jobs on Dataflow."""
    record = attempt.record
    values = {
        "ledgerbeam-process": record.process,
        "ledgerbeam-instance": record.instance,
        "ledgerbeam-attempt": str(record.number),
        "ledgerbeam-run": record.run,
    }
    return [
        f"{key}={re.sub('[^a-z0-9_-]', '-', value.lower())[:_MAX_NAME_LENGTH]}"
        for key, value in values.items()
        if value
    ]
