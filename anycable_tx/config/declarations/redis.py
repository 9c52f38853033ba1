"""Options of Redis: the connection, and what lives on it."""

from __future__ import annotations

from anycable_tx.config.option import Option

__all__ = ["CONNECTION", "LEGACY_BROADCASTER", "PUBSUB", "STREAM_BROADCASTER"]

SECTION = "Redis"

CONNECTION = (
    Option(
        "redis_url",
        default="redis://localhost:6379",
        help="redis://, rediss:// (TLS), valkey://, valkeys://, unix://; a comma list: a cluster",
        key="redis.url",
        env=("REDIS_URL",),
        section=SECTION,
        secret=True,
    ),
    Option(
        "redis_sentinels",
        "list",
        (),
        "sentinels, each [user:password@]host[:port]; the host of redis_url is then the name of the master",
        key="redis.sentinels",
        section=SECTION,
        secret=True,
        tag="C",
    ),
    Option(
        "redis_sentinel_discovery_interval",
        "float",
        30,
        "how often the sentinels are asked for the master besides listening to them",
        key="redis.sentinel_discovery_interval",
        section=SECTION,
        minimum=0.1,
        unit="s",
        tag="C",
    ),
    Option(
        "redis_keepalive_interval",
        "float",
        30,
        "how often each connection is pinged",
        key="redis.keepalive_ping_interval",
        section=SECTION,
        minimum=0.1,
        unit="s",
    ),
    Option(
        "redis_tls_verify",
        "bool",
        False,
        "check the certificate of rediss://",
        key="redis.tls_verify",
        section=SECTION,
    ),
    Option(
        "redis_tls_ca_cert_path",
        help="file with the authorities to check it with",
        key="redis.tls_ca_cert_path",
        section=SECTION,
        tag="C",
    ),
    Option(
        "redis_tls_client_cert_path",
        help="file with the certificate to present",
        key="redis.tls_client_cert_path",
        section=SECTION,
        tag="C",
    ),
    Option(
        "redis_tls_client_key_path",
        help="file with its key",
        key="redis.tls_client_key_path",
        section=SECTION,
        tag="C",
    ),
    Option("redis_disable_cache", "bool", False, section=SECTION, key="redis.disable_cache", tag="G"),
    Option(
        "redis_min_replicas",
        "int",
        0,
        "so many replicas have to have a message before it is acknowledged",
        key="redis.min_replicas",
        section=SECTION,
        minimum=0,
        tag="C",
    ),
)

PUBSUB = (
    *CONNECTION,
    Option(
        "redis_internal_channel",
        default="__anycable_internal__",
        help="channel of the commands between nodes",
        key="redis_pubsub.channel",
        section=SECTION,
        cli=False,
        tag="C",
    ),
    Option(
        "redis_verbatim_channels",
        "bool",
        False,
        "name the channel of a stream like the stream, to share a bus with AnyCable servers",
        key="redis_pubsub.verbatim",
        section=SECTION,
        tag="C",
    ),
)

STREAM_BROADCASTER = (
    *CONNECTION,
    Option(
        "redisx_stream",
        default="__anycable__",
        help="Redis stream that publications are read from",
        key="redis_stream_broadcast.stream",
        section=SECTION,
        tag="R",
    ),
    Option(
        "redisx_group",
        default="bx",
        help="consumer group",
        key="redis_stream_broadcast.group",
        section=SECTION,
        tag="R",
    ),
    Option(
        "redisx_read_block_milliseconds",
        "int",
        2000,
        "how long one read waits",
        key="redis_stream_broadcast.stream_read_block_milliseconds",
        section=SECTION,
        minimum=1,
        unit="ms",
        tag="R",
    ),
    Option(
        "redisx_mode",
        default="leader",
        help="leader: one node reads, in order, and others stand by; shared: all read",
        choices=("leader", "shared"),
        key="redis_stream_broadcast.mode",
        section=SECTION,
        tag="R",
    ),
)

LEGACY_BROADCASTER = (
    *CONNECTION,
    Option(
        "redis_channel",
        default="__anycable__",
        help="channel that publications are heard on",
        key="redis_pubsub_broadcast.channel",
        section=SECTION,
    ),
)
