# The agent without training, for `agent run`; docs/container.md.
#
#     docker build -t atac-agent .

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /usr/share/doc/*

FROM python AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# CPU=no leaves OpenVINO out: for thresholds that were calibrated with ONNX Runtime.
ARG CPU=yes
WORKDIR /source
COPY requirements.txt pyproject.toml README.md LICENSE agent.yaml ./
COPY docs/container/trim.sh docs/container/trim.sh
RUN python3 -m venv /opt/atac \
    && /opt/atac/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.txt
COPY agent agent
COPY calibration calibration
COPY engine engine
COPY train train
# A run of a few parts shows that the image works, and leaves the modules that it used compiled.
RUN /opt/atac/bin/pip install --no-deps --no-build-isolation --no-compile . \
    && sh docs/container/trim.sh /opt/atac "$CPU" \
    && cd /tmp && cp -r /source/agent.yaml /source/agent . \
    && /opt/atac/bin/agent run --config agent.yaml --parts 5 && rm -rf /tmp/*

FROM python
RUN useradd --system --uid 10001 --home-dir /var/lib/atac atac \
    && install -d -o atac -g atac /var/lib/atac \
    && install -d /etc/atac
COPY --from=build /opt/atac /opt/atac
ENV PATH=/opt/atac/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/lib/atac/cache
USER 10001
WORKDIR /var/lib/atac
VOLUME /var/lib/atac
EXPOSE 9464
STOPSIGNAL SIGTERM
# Asks the service `metrics`, which answers 503 when parts no longer get through.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthy', timeout=4)"]
ENTRYPOINT ["agent"]
CMD ["run", "--log", "json", "--config", "/etc/atac/agent.yaml"]
