"""The options of ``twistd anycable``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from twisted.python import usage

from anycable_tx import __version__
from anycable_tx.config.command_line import read_command_line
from anycable_tx.config.describe import help_text
from anycable_tx.config.dump import dump
from anycable_tx.config.load import load_schema, settle
from anycable_tx.config.settings import Settings
from anycable_tx.errors import ConfigurationError

__all__ = ["Options"]


class Options(usage.Options):
    """The command line of the server, as twistd wants it. Importing and using it does not import the reactor.

    After ``parseOptions`` the attribute ``settings`` holds the Settings. It ends the process by SystemExit:
    with status 0 after --help, --version and --print_config, which write to stdout, and with status 1 after one
    line on stderr for anything the server cannot start with.
    """

    synopsis = "[options]"
    longdesc = "A realtime server: Action Cable WebSockets, reliable streams, resumable sessions."

    settings: Settings

    def __str__(self) -> str:
        synopsis = "Usage: twistd [options] anycable [options]" if self.parent is None else self.getSynopsis()
        return help_text(synopsis, list(load_schema()))

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read *options* (sys.argv by default), the process's environment and the configuration file."""
        try:
            schema = load_schema()
            line = read_command_line(sys.argv[1:] if options is None else options, schema)
            if line.controls.get("help"):
                self._show(str(self))
            if line.controls.get("version"):
                self._show(__version__)
            self.settings = settle(schema, line, os.environ, ".")
            if line.controls.get("print_config"):
                self._show(dump(self.settings, line.controls.get("show_secrets", False)).rstrip("\n"))
        except ConfigurationError as e:
            print(f"anycable: {' '.join(str(e).split())}", file=sys.stderr)
            raise SystemExit(1) from None

    def _show(self, text: str) -> None:
        print(text)
        raise SystemExit(0)
