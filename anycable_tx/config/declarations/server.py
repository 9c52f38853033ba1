"""Options of the process: its name, listeners, WebSockets, logs and its end."""

from __future__ import annotations

from anycable_tx.config.option import Option

__all__ = ["CONTROLS", "EVENTS", "GLOBAL", "LOGGING", "SERVER", "SHUTDOWN", "WEBSOCKET"]

#: What steers the loading itself. These are no settings: no file holds them and no Settings shows them.
CONTROLS = (
    Option("help", "bool", False, "show this text and exit", aliases=("h",), file=False),
    Option("version", "bool", False, "show the version and exit", aliases=("v",), file=False),
    Option("config_path", help="the configuration file; replaces the usual places", file=False),
    Option("ignore_config_path", "bool", False, "read no configuration file", file=False),
    Option("print_config", "bool", False, "show the configuration in effect as YAML and exit", file=False),
    Option("show_secrets", "bool", False, "with --print_config: secrets in clear", file=False),
)

GLOBAL = (
    Option(
        "presets",
        "list",
        (),
        "presets to apply instead of the ones the environment suggests: broker, fly, heroku; none for no preset",
        tag="R",
    ),
    Option("node_id", help="name of this node in the logs; empty: 6 random characters"),
    Option("strict", "bool", False, "refuse to start when the file has keys that do not exist"),
    Option(
        "controllers",
        "list",
        (),
        "who decides about connections and subscriptions, first answer wins; empty: what the secrets call for",
    ),
)

SERVER = (
    Option("host", default="localhost", help="address of all listeners", key="server.host", section="Server"),
    Option(
        "port",
        "int",
        8080,
        "main port; 0: any free one",
        key="server.port",
        section="Server",
        env=("PORT",),
        minimum=0,
        maximum=65535,
    ),
    Option("path", "list", ("/cable",), "WebSocket paths", key="ws.paths", section="Server"),
    Option(
        "health_path",
        default="/health",
        help="health endpoint; empty: off",
        key="server.health_path",
        section="Server",
    ),
    Option(
        "ready_path",
        default="/ready",
        help="readiness endpoint; empty: off",
        key="server.ready_path",
        section="Server",
    ),
    Option(
        "health_drain",
        "bool",
        False,
        "the health endpoint answers 503 once the server is stopping",
        key="server.health_drain",
        section="Server",
    ),
    Option(
        "allowed_origins",
        "list",
        (),
        "origin hosts that may connect, a leading * matches any beginning; empty: all",
        key="server.allowed_origins",
        section="Server",
    ),
    Option(
        "max_conn",
        "int",
        0,
        "connections at a time, 0: no limit; health and readiness always answer",
        key="server.max_conn",
        section="Server",
        minimum=0,
    ),
    Option(
        "fast_path",
        "bool",
        True,
        "write broadcasts straight to the sockets where that is possible",
        key="server.fast_path",
        section="Server",
    ),
    Option("ssl_cert", help="PEM certificate, with its chain", key="server.ssl.cert_path", section="Server"),
    Option("ssl_key", help="PEM key of the certificate", key="server.ssl.key_path", section="Server"),
)

WEBSOCKET = (
    Option(
        "max_message_size",
        "int",
        65536,
        "largest message a client may send",
        key="ws.max_message_size",
        section="WebSocket",
        minimum=1,
        unit="bytes",
    ),
    Option(
        "ws_max_pending_size",
        "int",
        1048576,
        "what may wait for a client before it counts as too slow, 0: no limit",
        key="ws.max_pending_size",
        section="WebSocket",
        minimum=0,
        unit="bytes",
    ),
    Option(
        "max_commands_pending",
        "int",
        64,
        "commands of one client that may wait before it is no longer read",
        key="ws.max_commands_pending",
        section="WebSocket",
        minimum=1,
    ),
    Option(
        "ws_write_timeout",
        "float",
        2,
        "how long a client may take none of what waits for it",
        key="ws.write_timeout",
        section="WebSocket",
        minimum=0,
        unit="s",
    ),
    Option(
        "handshake_timeout",
        "float",
        5,
        "time for the headers of a request to arrive",
        key="ws.handshake_timeout",
        section="WebSocket",
        minimum=0.1,
        unit="s",
    ),
    Option(
        "enable_ws_compression",
        "bool",
        False,
        "offer permessage-deflate",
        key="ws.enable_compression",
        section="WebSocket",
    ),
    Option(
        "request_id_sid",
        "bool",
        False,
        "a valid X-Request-ID that no session uses becomes the session id",
        key="ws.request_id_sid",
        section="WebSocket",
    ),
    Option(
        "ping_interval",
        "float",
        3,
        "time between pings; a client may ask for its own with ?pi=",
        key="app.ping_interval",
        section="WebSocket",
        minimum=0.01,
        unit="s",
    ),
    Option(
        "ping_timestamp_precision",
        default="s",
        help="unit of the timestamps in pings; a client may ask for its own with ?ptp=",
        key="app.ping_timestamp_precision",
        section="WebSocket",
        choices=("s", "ms", "ns"),
    ),
    Option(
        "pong_timeout",
        "float",
        0,
        "close clients that leave pings unanswered for this long, 0: never",
        key="app.pong_timeout",
        section="WebSocket",
        minimum=0,
        unit="s",
    ),
    Option(
        "enable_native_pings",
        "bool",
        False,
        "send WebSocket ping frames too",
        key="app.enable_native_ping",
        section="WebSocket",
    ),
    Option("read_buffer_size", "int", 1024, key="ws.read_buffer_size", section="WebSocket", tag="G"),
    Option("write_buffer_size", "int", 1024, key="ws.write_buffer_size", section="WebSocket", tag="G"),
    Option("netpoll_enabled", "bool", True, section="WebSocket", tag="G", file=False),
)

EVENTS = (
    Option("sse", "bool", False, "serve server-sent events", key="sse.enabled", section="Server-sent events"),
    Option(
        "sse_path",
        default="/events",
        help="path of server-sent events, on the main port",
        key="sse.path",
        section="Server-sent events",
    ),
)

LOGGING = (
    Option(
        "log_level",
        default="info",
        help="least important records that are written",
        key="logging.level",
        section="Logging",
        choices=("debug", "info", "warn", "error"),
    ),
    Option(
        "log_format",
        default="text",
        help="shape of the records",
        key="logging.format",
        section="Logging",
        choices=("text", "json"),
    ),
    Option("debug", "bool", False, "log at the level debug", key="logging.debug", section="Logging"),
)

SHUTDOWN = (
    Option(
        "shutdown_timeout",
        "float",
        30,
        "time to disconnect everybody, counted after the delay",
        key="app.shutdown_timeout",
        section="Shutdown",
        minimum=0,
        unit="s",
    ),
    Option(
        "shutdown_delay",
        "float",
        0,
        "how long to serve as usual after the signal",
        key="app.shutdown_delay",
        section="Shutdown",
        minimum=0,
        unit="s",
    ),
    Option(
        "shutdown_pool_size",
        "int",
        16,
        "clients disconnected at a time",
        key="app.shutdown_disconnect_gopool_size",
        section="Shutdown",
        minimum=1,
    ),
    Option(
        "shutdown_slowdrain",
        "bool",
        False,
        "spread the disconnects over most of the timeout",
        key="app.shutdown_slowdrain",
        section="Shutdown",
        tag="P",
    ),
)
