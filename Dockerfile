# The compression stage as an image. `docker build --target cpu .` (default) or `--target cuda`.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build-cpu
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir --constraint constraints.txt .

FROM python:${PYTHON} AS build-cuda
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt .

FROM python:${PYTHON} AS runtime
RUN useradd --create-home --uid 10001 compress
ENV PATH=/opt/venv/bin:$PATH DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1
WORKDIR /home/compress/project
COPY --chown=compress pyproject.toml ./
COPY --chown=compress conf conf
COPY --chown=compress data/01_raw data/01_raw
RUN mkdir src && chown compress . src data
USER compress
ENTRYPOINT ["kedro", "run"]
CMD ["--pipelines=prune_medical"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/venv /opt/venv

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
