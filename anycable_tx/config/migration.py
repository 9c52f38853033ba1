"""What each option of anycable-go 1.6 is here, as the schema has it: ``python -m anycable_tx.config.migration``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from anycable_tx.config.describe import default_text
from anycable_tx.config.option import Option
from anycable_tx.config.schema import Schema

__all__ = ["NOTES", "OPTIONS", "Counterpart", "counterparts", "table"]

#: What is to be known about an option beyond what the schema says, by its name.
NOTES = {
    "config_path": "YAML instead of TOML, with the same keys; `conf/anycable.yml`, `/etc/anycable/anycable.yml`",
    "print_config": "YAML, with secrets masked unless `--show_secrets` is given",
    "presets": "`broker` takes Redis or NATS where one is configured, memory otherwise",
    "max_conn": "further upgrades get 503; health, metrics and the like still answer",
    "allowed_origins": "the same patterns",
    "ssl_cert": "read again on HUP; without the other of the two the server does not start",
    "ssl_key": "as `ssl_cert`",
    "shutdown_timeout": "counted after `shutdown_delay`",
    "shutdown_delay": "before `shutdown_timeout`, not a part of it",
    "shutdown_slowdrain": "not only in a Pro edition",
    "ws_max_pending_size": "has a variable here, and the command line wins over the file",
    "broadcast_adapter": "nothing needs Redis unless you ask for it",
    "broker": "`redis` is not only in a Pro edition",
    "pubsub": "follows from the broker",
    "rpc_host": "there is no backend until it is given",
    "rpc_concurrency": "0 adapts to the backend; not only in a Pro edition",
    "rpc_request_timeout": "the same for gRPC and HTTP",
    "disconnect_mode": "`deferred` too: once for a session, when it can no longer be resumed",
    "disconnect_rate": "any positive number",
    "disconnect_backlog_size": "a full queue drops the oldest call, and counts it",
    "secret": "`none` means that there is none; as every secret, it can come from a file: `secret_file`",
    "enats_addr": "used by the `nats-server` that runs beside this process",
    "ds": "clients of reliable streams resume over WebSocket",
    "pusher_app_id": "clients speak Action Cable",
    "graphql_path": "a channel of your backend serves GraphQL over Action Cable",
    "redis.max_reconnect_attempts": "connections are made again for ever, and the process stays",
}

#: Name, key in its TOML file (- for none) and default (nothing: empty; ?: something that is found out).
OPTIONS = """
config_path - ?
ignore_config_path - false
print_config - false
presets presets ?
node_id node_id ?
host server.host localhost
port server.port 8080
path ws.paths /cable
health_path server.health_path /health
allowed_origins server.allowed_origins
max_conn server.max_conn 0
secret secret
broadcast_key broadcast_key
public public false
noauth noauth false
shutdown_timeout app.shutdown_timeout 30
shutdown_delay app.shutdown_delay 0
shutdown_pool_size app.shutdown_disconnect_gopool_size 16
shutdown_slowdrain app.shutdown_slowdrain false
ssl_cert server.ssl.cert_path
ssl_key server.ssl.key_path
read_buffer_size ws.read_buffer_size 1024
write_buffer_size ws.write_buffer_size 1024
max_message_size ws.max_message_size 65536
ws_write_timeout ws.write_timeout 2
ws_max_pending_size ws.max_pending_size 1048576
enable_ws_compression ws.enable_compression false
ping_interval app.ping_interval 3
ping_timestamp_precision app.ping_timestamp_precision s
pong_timeout app.pong_timeout 0
enable_native_pings app.enable_native_ping false
netpoll_enabled - true
broadcast_adapter broadcast_adapters http,redis
broker broker.adapter
pubsub pubsub_adapter ?
history_limit broker.history_limit 100
history_ttl broker.history_ttl 300
sessions_ttl broker.sessions_ttl 300
presence_ttl broker.presence_ttl 15
redis_channel redis_pubsub_broadcast.channel __anycable__
redisx_stream redis_stream_broadcast.stream __anycable__
redisx_group redis_stream_broadcast.group bx
redisx_read_block_milliseconds redis_stream_broadcast.stream_read_block_milliseconds 2000
nats_channel nats_broadcast.channel __anycable__
http_broadcast_port http_broadcast.port 0
http_broadcast_path http_broadcast.path /_broadcast
http_broadcast_secret http_broadcast.secret
http_broadcast_cors http_broadcast.cors_headers false
hub_gopool_size app.broadcast_gopool_size 16
redis_url redis.url redis://localhost:6379
redis_sentinels redis.sentinels
redis_sentinel_discovery_interval redis.sentinel_discovery_interval 30
redis_keepalive_interval redis.keepalive_ping_interval 30
redis_tls_verify redis.tls_verify false
redis_tls_ca_cert_path redis.tls_ca_cert_path
redis_tls_client_cert_path redis.tls_client_cert_path
redis_tls_client_key_path redis.tls_client_key_path
redis_disable_cache redis.disable_cache false
nats_servers nats.servers nats://127.0.0.1:4222
nats_dont_randomize_servers nats.dont_randomize_servers false
embed_nats embedded_nats.enabled false
enats_addr embedded_nats.service_addr nats://127.0.0.1:4222
enats_cluster embedded_nats.cluster_addr
enats_cluster_name embedded_nats.cluster_name anycable-cluster
enats_cluster_routes embedded_nats.routes
enats_gateway embedded_nats.gateway_addr
enats_gateways embedded_nats.gateways
enats_gateway_advertise embedded_nats.gateway_advertise
enats_store_dir embedded_nats.jetstream_store_dir
enats_server_name embedded_nats.name
enats_debug - false
enats_trace - false
enats_max_payload embedded_nats.max_payload 0
rpc_host rpc.host localhost:50051
norpc - false
rpc_impl rpc.implementation
rpc_concurrency rpc.concurrency 28
rpc_concurrency_initial rpc.concurrency_initial 25
rpc_concurrency_min rpc.concurrency_min 5
rpc_concurrency_max rpc.concurrency_max 100
rpc_request_timeout rpc.request_timeout 0
rpc_command_timeout rpc.command_timeout 3000
http_rpc_timeout rpc.http_request_timeout 0
http_rpc_secret rpc.secret
headers rpc.proxy_headers cookie
proxy_cookies rpc.proxy_cookies
rpc_enable_tls rpc.enable_tls false
rpc_tls_verify rpc.tls_verify true
rpc_tls_root_ca rpc.tls_root_ca_path
rpc_max_call_recv_size rpc.max_recv_size 0
rpc_max_call_send_size rpc.max_send_size 0
disconnect_mode app.disconnect_mode auto
disconnect_rate disconnector.rate 100
disconnect_backlog_size disconnector.backlog 4096
disconnect_timeout - 0
disable_disconnect - false
jwt_secret jwt.secret
jwt_param jwt.param jid
enforce_jwt jwt.force false
streams_secret streams.secret
public_streams streams.public false
streams_whisper streams.whisper false
streams_presence streams.presence true
turbo_streams streams.turbo false
cable_ready streams.cable_ready false
turbo_streams_secret streams.turbo_secret
cable_ready_secret streams.cable_ready_secret
jwt_id_key - ?
jwt_id_param - ?
jwt_id_enforce - ?
turbo_rails_key - ?
cable_ready_key - ?
turbo_rails_cleartext - ?
cable_ready_cleartext - ?
sse sse.enabled false
sse_path sse.path /events
ds ds.enabled false
ds_path ds.path /ds
ds_skip_auth ds.skip_auth false
ds_poll_interval ds.poll_interval 10
ds_sse_ttl ds.sse_ttl 60
api_port api.port 0
api_path api.path /api
api_secret api.secret
pusher_app_id pusher.app_id
pusher_app_key pusher.app_key
pusher_secret pusher.secret
pusher_api_port pusher.api_port 0
poll poll.enabled false
poll_path poll.path /lp
poll_interval poll.interval 15
poll_flush_interval poll.flush_interval 500
poll_keepalive_timeout poll.keepalive_timeout 5
poll_max_request_size poll.max_request_size 65536
admin admin.enabled false
admin_path admin.path /_high_voltage_
admin_port admin.port 0
admin_secret admin.secret
graphql_path -
graphql_channel - GraphqlChannel
graphql_action - execute
graphql_idle_timeout - 2
ocpp_path -
ocpp_channel - OCPPChannel
ocpp_granular_actions - true
ocpp_heartbeat_interval - 30
log_level logging.level info
log_format logging.format text
debug logging.debug false
metrics_http metrics.http_path
metrics_host metrics.host ?
metrics_port metrics.port ?
metrics_log metrics.log false
metrics_rotate_interval metrics.rotate_interval 15
metrics_log_filter metrics.log_filter
metrics_tags metrics.tags
stats_refresh_interval app.stats_refresh_interval 5
statsd_host metrics.statsd.host
statsd_prefix metrics.statsd.prefix anycable_go.
statsd_tags_format metrics.statsd.tags_format datadog
statsd_max_packet_size metrics.statsd.max_packet_size 1400
metrics_log_interval - 0
metrics_log_formatter -
(file) redis.max_reconnect_attempts 5
(file) nats.max_reconnect_attempts 5
(file) redis_pubsub.channel __anycable_internal__
(file) nats_pubsub.channel __anycable_internal__
(file) embedded_nats.jetstream false
(file) embedded_nats.jetstream_ready_timeout 30
(file) streams.pubsub_channel $pubsub
(file) api.host
(file) api.cors_headers false
(file) api.cors_hosts
"""


class Counterpart(NamedTuple):
    """An option of anycable-go, and what it is here."""

    name: str
    key: str
    here: str


def counterparts(schema: Schema) -> Iterator[Counterpart]:
    """All of them, in the order of its documentation."""
    for line in OPTIONS.strip().splitlines():
        name, key, *default = line.split(" ")
        key = "" if key == "-" else key
        in_file_only = name == "(file)"
        option = schema.key(key) if in_file_only else schema.flag(name)
        if option is None:
            here = _absent(key if in_file_only else name)
        else:
            here = _present(option, name, key, "".join(default))
        yield Counterpart("" if in_file_only else name, key, here)


def _absent(name: str) -> str:
    note = NOTES.get(name, "")
    return f"not there; {note}" if note else "not there"


def _present(option: Option, name: str, key: str, default: str) -> str:
    if option.tag == "G" or (option.tag == "D" and not option.successor):
        return "accepted, no effect"
    if option.tag == "D":
        return f"accepted as `{option.successor}`, with a warning"
    parts = ["the same"]
    own = default_text(option)
    if default != "?" and _plain(own) != _plain(default):
        parts.append(f"default `{own}` instead of `{default}`" if own and default else f"default `{own or default}`")
    if key and not option.file:
        parts.append("not in the file")
    elif key and option.yaml_key != key:
        parts.append(f"key `{option.yaml_key}`")
    if NOTES.get(name):
        parts.append(NOTES[name])
    return "; ".join(parts)


def _plain(default: str) -> str:
    """Without a unit, an empty default and one of nothing being alike."""
    return default.split(" ")[0].strip('"').removeprefix("off")


def table(schema: Schema) -> str:
    """All of them as a Markdown table."""
    lines = ["| anycable-go | Its TOML key | Here |", "|---|---|---|"]
    for name, key, here in counterparts(schema):
        cells = f"`--{name}`" if name else "(file only)", f"`{key}`" if key else "", here
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from anycable_tx.config.load import load_schema

    sys.stdout.write(table(load_schema()))
