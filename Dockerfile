# syntax=docker/dockerfile:1

# --- build: librdkafka, OpenSSL and zstd are compiled from the crates' sources and linked statically -----
FROM rust:1.95-slim-bookworm AS build
# Versions follow the base image's Debian release, which is pinned above.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin tidegate \
    && install -D -m 0755 target/release/tidegate /out/tidegate

# --- run ------------------------------------------------------------------------------------------------
FROM debian:bookworm-slim
# The certificate authorities, for Kafka behind TLS.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/tidegate --create-home --shell /usr/sbin/nologin tidegate
COPY --from=build /out/tidegate /usr/local/bin/tidegate

USER 10001
WORKDIR /var/lib/tidegate
# The log: without a volume of its own it goes when the container goes.
VOLUME /var/lib/tidegate
ENV TIDEGATE_WAL__PATH=/var/lib/tidegate/wal \
    TIDEGATE_HTTP__LISTEN=0.0.0.0:4000 \
    TIDEGATE_HTTP__SHUTDOWN="8 s"

# `docker stop` kills after 10 s: the shutdown stays below it.
# The gateway lets nobody in by default: say TIDEGATE_HTTP__ALLOW_ANONYMOUS=true when the container's
# network keeps strangers out. The admin listener stays on the container's loopback unless
# TIDEGATE_ADMIN__LISTEN and TIDEGATE_ADMIN__TOKEN are given.
EXPOSE 4000 4001

STOPSIGNAL SIGTERM
# Alive, not ready: a full log or a Kafka that is away is nothing that a restart cures. 401 is an answer too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/bin/bash", "-c", "listen=${TIDEGATE_ADMIN__LISTEN:-127.0.0.1:4001}; exec 3<>/dev/tcp/127.0.0.1/${listen##*:} && printf 'GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r -t 4 _ code _ <&3 && [[ $code == 200 || $code == 401 ]]"]

ENTRYPOINT ["/usr/local/bin/tidegate"]
CMD ["serve"]
