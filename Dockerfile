# Two images from one file:
#   docker build --target api    -t rebase-api .       the HTTP service: no torch, nothing that touches tensors
#   docker build --target worker -t rebase-worker .    the Celery worker, with the `worker` extra
# Versions come from requirements.lock. The base is pinned by digest; docs/operations.md says how to move it.

FROM python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS base
ENV PATH=/opt/rebase/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/rebase \
    REBASE_HOME=/var/lib/rebase \
    REBASE_HOST=0.0.0.0 \
    REBASE_AUTH=keys \
    REBASE_LOG_FORMAT=json
# The folders exist here so that volumes mounted over them belong to the service's user.
RUN groupadd --system --gid 10001 rebase \
    && useradd --system --uid 10001 --gid rebase --no-create-home --home-dir /var/lib/rebase rebase \
    && install --directory --owner rebase --group rebase /var/lib/rebase /var/lib/rebase/cache /var/lib/rebase/work


FROM base AS build
WORKDIR /src
RUN python -m venv /opt/rebase
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY service service
COPY workers workers
COPY rebase rebase
COPY migrations migrations


FROM build AS build-api
RUN --mount=type=cache,target=/root/.cache/pip pip install -c requirements.lock .


FROM build AS build-worker
# pip's own setting: name a further package index here to get a torch build for CPU or another CUDA version.
# Without it the plain torch wheel is installed, which carries CUDA and runs on CPUs too.
ARG PIP_EXTRA_INDEX_URL
# `evaluation` beside these brings lm-evaluation-harness, for requests that name its tasks.
ARG WORKER_EXTRAS="worker,datasets"
RUN --mount=type=cache,target=/root/.cache/pip pip install -c requirements.lock ".[${WORKER_EXTRAS}]"


FROM base AS api
COPY --from=build-api /opt/rebase /opt/rebase
WORKDIR /var/lib/rebase
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=3)"]
CMD ["python", "-m", "service"]


FROM base AS worker
COPY --from=build-worker /opt/rebase /opt/rebase
WORKDIR /var/lib/rebase
USER 10001:10001
HEALTHCHECK --interval=20s --timeout=10s --start-period=60s --retries=3 CMD ["python", "-m", "workers.health"]
CMD ["python", "-m", "workers"]
