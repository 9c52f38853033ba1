"""Options of the admin page."""

from __future__ import annotations

from anycable_tx.config.option import Option

__all__ = ["ADMIN"]

SECTION = "Admin page"

ADMIN = (
    Option("admin", "bool", False, "serve the admin page; needs admin_key", key="admin.enabled", section=SECTION),
    Option("admin_path", default="/admin", help="where it is", key="admin.path", section=SECTION),
    Option(
        "admin_port",
        "int",
        0,
        "its port, 0: the main one",
        key="admin.port",
        section=SECTION,
        minimum=0,
        maximum=65535,
    ),
    Option(
        "admin_host",
        help="address of its port; empty: host",
        key="admin.host",
        section=SECTION,
        tag="C",
        cli=False,
    ),
    Option("admin_key", help="who knows it is let in", key="admin.key", section=SECTION, secret=True),
    Option("admin_secret", key="admin.secret", section=SECTION, secret=True, tag="D", successor="admin_key"),
)
