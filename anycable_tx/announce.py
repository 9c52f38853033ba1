"""The first lines of the log: what starts here, and what is to be said about its settings."""

from __future__ import annotations

import os
import resource
from typing import Any

from twisted.logger import Logger

from anycable_tx import __version__

__all__ = ["announce_start"]


def announce_start(log: Logger, settings: Any, reactor: Any, **attrs: Any) -> None:
    """Log them, *attrs* with the line that names the process."""
    if settings.presets:
        presets = ",".join(settings.presets)
        log.info("load presets", attrs={"context": "config", "presets": presets})
    if settings["log_level"] == "debug":
        log.debug("Debug mode is on")
    log.info(
        "Starting AnyCable {version} (pid: {pid}, open file limit: {files}, reactor: {name})",
        version=f"{__version__}-tx",
        pid=os.getpid(),
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        name=type(reactor).__name__,
        attrs=attrs,
    )
    if settings.config_file:
        log.info("Using configuration from file: {path}", path=settings.config_file)
    for notice in settings.notices:
        log.warn("{notice}", notice=notice, attrs={"context": "config"})
