"""Options of the REST API."""

from __future__ import annotations

from anycable_tx.config.option import Option

__all__ = ["API"]

SECTION = "REST API"

API = (
    Option(
        "api_path",
        default="/api",
        help="where the API is; empty: nowhere",
        key="api.path",
        section=SECTION,
    ),
    Option(
        "api_port",
        "int",
        0,
        "its port, 0: the main one, if there is a key or everything is public",
        key="api.port",
        section=SECTION,
        minimum=0,
        maximum=65535,
    ),
    Option(
        "api_host",
        help="address of its port; empty: host",
        key="api.host",
        section=SECTION,
        tag="C",
        cli=False,
    ),
    Option(
        "api_secret",
        help="bearer token; empty: derived from secret; none: no key",
        key="api.secret",
        section=SECTION,
        secret=True,
    ),
    Option(
        "api_strict",
        "bool",
        True,
        "answer 422 to publications that cannot be understood (otherwise 201, and they are counted)",
        key="api.strict",
        section=SECTION,
    ),
    Option(
        "api_max_body",
        "int",
        8 * 1024 * 1024,
        "largest request body",
        key="api.max_body_size",
        section=SECTION,
        minimum=1,
        unit="bytes",
    ),
    Option(
        "api_cors_headers",
        "bool",
        False,
        "answer to cross-origin requests",
        key="api.cors_headers",
        section=SECTION,
        tag="C",
        cli=False,
    ),
    Option(
        "api_cors_hosts",
        "list",
        (),
        "origin hosts that are told so, a leading * matches any beginning; empty: all",
        key="api.cors_hosts",
        section=SECTION,
        tag="C",
        cli=False,
    ),
)
