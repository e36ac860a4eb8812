# One file, two images: `unit` holds the Seldon-wrapped nodes, `platform` the engine and the command line; `executor` is the
# same as `platform` for who swaps Seldon's executor.
#   docker build --target unit -t contender-unit:0.1.0 .
#   docker build --target platform -t contender-platform:0.1.0 .

FROM python:3.12-slim AS unit-packages
COPY requirements/units.lock /build/
RUN python -m venv /opt/contender \
    && /opt/contender/bin/pip install --no-cache-dir --require-hashes -r /build/units.lock \
    && /opt/contender/bin/pip uninstall --yes pip \
    && find /opt/contender/lib -type d -name tests -prune -exec rm -rf {} +

FROM python:3.12-slim AS platform-packages
COPY requirements/platform.lock /build/
RUN python -m venv /opt/contender \
    && /opt/contender/bin/pip install --no-cache-dir --require-hashes -r /build/platform.lock \
    && find /opt/contender/lib -type d -name tests -prune -exec rm -rf {} +
WORKDIR /build
COPY pyproject.toml README.md LICENSE /build/
COPY requirements/platform.in /build/requirements/
COPY router /build/router/
COPY ledger /build/ledger/
COPY experiment /build/experiment/
COPY serving /build/serving/
COPY training /build/training/
COPY console /build/console/
RUN /opt/contender/bin/pip install --no-cache-dir --no-deps --no-build-isolation /build \
    && /opt/contender/bin/pip uninstall --yes pip

FROM python:3.12-slim AS unit
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="contender-unit" \
      org.opencontainers.image.description="Contender's model, router and campaigns nodes under Seldon's Python wrapper" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=unit-packages /opt/contender /opt/contender
WORKDIR /app
COPY router /app/router/
COPY serving /app/serving/
COPY models /app/models/
RUN python -m compileall -q /app
# One process and one thread of BLAS a container: replicas, not processes, use more cores. gRPC is not served.
ENV PATH=/opt/contender/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 \
    GUNICORN_WORKERS=1 GRPC_WORKERS=0 OMP_NUM_THREADS=1 MODEL_NAME=serving.components.Model SERVICE_TYPE=MODEL
USER 8888
EXPOSE 9000
CMD ["sh", "-c", "exec seldon-core-microservice \"$MODEL_NAME\" --service-type \"$SERVICE_TYPE\""]

FROM python:3.12-slim AS engine
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="contender-platform" \
      org.opencontainers.image.description="Contender's engine and command line" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=platform-packages /opt/contender /opt/contender
WORKDIR /app
COPY models /app/models/
COPY manifests/base /app/manifests/base/
RUN install -d -o 8888 -g 8888 /var/lib/contender
ENV PATH=/opt/contender/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 \
    CONTENDER_HOST=0.0.0.0 CONTENDER_HOME=/var/lib/contender
USER 8888

# In the place of Seldon's executor: the operator passes flags and names no command.
FROM engine AS executor
EXPOSE 8000
ENTRYPOINT ["contender", "executor"]

FROM engine AS platform
EXPOSE 9000
ENTRYPOINT ["contender"]
CMD ["serve"]
