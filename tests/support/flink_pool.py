"""A pool of Python workers that several TaskManagers of one machine share.

TaskManagers give their workers the same names, and Beam's pool takes the one that was started last
for the one to be stopped. Here none is stopped by name: a worker ends by itself when its
TaskManager closes the stream that it is controlled by.
"""

import sys
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import worker_pool_main


class SharedPool(worker_pool_main.BeamFnExternalWorkerPoolServicer):
    def StopWorker(self, stop_worker_request: Any, unused_context: Any) -> Any:  # noqa: N802
        return beam_fn_api_pb2.StopWorkerResponse()


worker_pool_main.BeamFnExternalWorkerPoolServicer = SharedPool

if __name__ == "__main__":
    worker_pool_main.main(sys.argv)
