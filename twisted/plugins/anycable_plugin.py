"""``twistd anycable`` and the built-in providers: names and dotted paths only."""

from twisted.application.service import ServiceMaker

from anycable_tx.config.declarations import nats, redis, rpc_transports
from anycable_tx.config.option import Option
from anycable_tx.providers import Provider

anycable = ServiceMaker(
    "anycable",
    "anycable_tx.service",
    "A realtime server: Action Cable WebSockets, reliable streams, resumable sessions.",
    "anycable",
)

memory_broker = Provider(
    "broker",
    "memory",
    "anycable_tx.brokers.memory:create",
    options=(
        Option(
            "broker_snapshot",
            key="broker.snapshot",
            section="Broker",
            tag="R",
            help="file the memory broker is written to on a graceful stop and reloaded from on start",
        ),
    ),
)
no_broker = Provider("broker", "none", "anycable_tx.brokers.none:create")
redis_broker = Provider("broker", "redis", "anycable_tx.brokers.redis:create", options=redis.CONNECTION)
redis_pubsub = Provider("pubsub", "redis", "anycable_tx.pubsub.redis:create", options=redis.PUBSUB)
redisx_broadcaster = Provider(
    "broadcaster", "redisx", "anycable_tx.broadcasters.redisx:create", options=redis.STREAM_BROADCASTER
)
redis_broadcaster = Provider(
    "broadcaster", "redis", "anycable_tx.broadcasters.redis:create", options=redis.LEGACY_BROADCASTER
)
nats_broker = Provider("broker", "nats", "anycable_tx.brokers.nats:create", needs_asyncio=True, options=nats.BROKER)
nats_pubsub = Provider("pubsub", "nats", "anycable_tx.pubsub.nats:create", needs_asyncio=True, options=nats.PUBSUB)
nats_broadcaster = Provider(
    "broadcaster", "nats", "anycable_tx.broadcasters.nats:create", needs_asyncio=True, options=nats.BROADCASTER
)
local_pubsub = Provider("pubsub", "none", "anycable_tx.pubsub.local:create")
http_broadcaster = Provider(
    "broadcaster",
    "http",
    "anycable_tx.broadcasters.http:create",
    options=(
        Option(
            "broadcast_hold",
            kind="float",
            default=12,
            key="http_broadcast.hold",
            section="Broadcasting",
            minimum=0,
            unit="s",
            tag="R",
            help="how long a publication waits for a broker that is unavailable before it is refused with 501",
        ),
    ),
)
jwt_controller = Provider(
    "controller",
    "jwt",
    "anycable_tx.controllers.jwt:create",
    options=(
        Option(
            "jwt_rotated_secrets",
            kind="list",
            default=(),
            key="jwt.rotated_secrets",
            section="Authentication and streams",
            secret=True,
            tag="S",
            help="further secrets that tokens are accepted with, beside jwt_secret, while that is replaced",
        ),
    ),
)
noauth_controller = Provider("controller", "noauth", "anycable_tx.controllers.noauth:create")
streams_controller = Provider(
    "controller",
    "streams",
    "anycable_tx.controllers.streams:create",
    options=(
        Option(
            "streams_rotated_secrets",
            kind="list",
            default=(),
            key="streams.rotated_secrets",
            section="Authentication and streams",
            secret=True,
            tag="S",
            help="further secrets that signed names are accepted with, beside streams_secret, while that is replaced",
        ),
    ),
)
null_controller = Provider("controller", "null", "anycable_tx.controllers.null:create")
grpc_controller = Provider(
    "controller",
    "grpc",
    "anycable_tx.controllers.rpc:create_grpc",
    needs_asyncio=True,
    options=rpc_transports.GRPC,
)
http_controller = Provider(
    "controller", "http", "anycable_tx.controllers.rpc:create_http", options=rpc_transports.HTTP
)
