# moe-compress as images: `cpu` (the default target), `cuda`, and `mlflow`, the tracking server of compose.yaml.
# docs/images.md says how they are built and what of that was run. Base images are pinned by exact tag.
ARG PYTHON=3.11.15-slim-bookworm

FROM python:${PYTHON} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt pyproject.toml ./
# What is depended on, without the code: a changed line of ours installs none of it again.
RUN python -m venv /opt/venv && python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['servers'], sep='\n')" > requirements.txt

FROM base AS packages-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)" \
    && pip install --constraint constraints.txt --requirement requirements.txt

# torch's wheel on PyPI is CUDA's and brings its libraries; the host brings the driver.
FROM base AS packages-cuda
RUN pip install --constraint constraints.txt --requirement requirements.txt

FROM base AS package
ARG SETUPTOOLS=80.9.0
RUN pip install "setuptools==${SETUPTOOLS}"
COPY README.md LICENSE ./
COPY src src
RUN pip install --no-deps --no-build-isolation --prefix=/package .

# Everything that lasts is under data/: mount a volume there.
FROM python:${PYTHON} AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    DO_NOT_TRACK=true \
    HF_HOME=/home/compress/project/data/hub \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 compress \
    && useradd --uid 10001 --gid compress --create-home compress \
    && install --directory --owner=compress --group=compress \
        /home/compress/project /home/compress/project/data /home/compress/project/src
WORKDIR /home/compress/project
# As numbers, so that Kubernetes can see that it is not root.
USER 10001:10001
# A job, which ends, has no health to check.
HEALTHCHECK NONE
ENTRYPOINT ["kedro"]
CMD ["run", "--pipelines=prune_medical"]

FROM scratch AS project
COPY pyproject.toml /
COPY conf /conf
COPY data/01_raw /data/01_raw

FROM base AS packages-mlflow
RUN pip install --constraint constraints.txt mlflow boto3 psycopg2-binary

FROM python:${PYTHON} AS mlflow
ENV PATH=/opt/venv/bin:$PATH MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --uid 10001 --create-home mlflow
WORKDIR /home/mlflow
COPY --from=packages-mlflow /opt/venv /opt/venv
USER 10001
EXPOSE 5000
HEALTHCHECK --interval=5s --timeout=10s --retries=30 CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health')"]
CMD ["mlflow", "server", "--host=0.0.0.0", "--port=5000"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/venv /opt/venv
COPY --from=package /package /opt/venv
COPY --from=project --chown=10001:10001 / ./
ARG COMMIT=none
ENV MOE_COMPRESS_COMMIT=$COMMIT

FROM runtime AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=package /package /opt/venv
COPY --from=project --chown=10001:10001 / ./
ARG COMMIT=none
ENV MOE_COMPRESS_COMMIT=$COMMIT
