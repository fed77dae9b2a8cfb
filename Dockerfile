# The image that Python workers run in, on Flink and on Dataflow:
#     docker build --tag REGISTRY/ledgerbeam-worker:0.1.0 .
# Beam's version and Python's are those of the driver, or results of pickling don't fit.
FROM apache/beam_python3.11_sdk:2.77.0
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt '/src[gcp,aws,postgres]' \
    && rm -r /src
