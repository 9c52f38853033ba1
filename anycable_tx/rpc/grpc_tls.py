"""TLS to a gRPC backend: whom to trust, and a way around trust for those who ask for it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anycable_tx.rpc.authorities import read_authorities

__all__ = ["Tunnel", "authorities"]

CHUNK = 65536


def authorities(settings: Mapping[str, Any]) -> bytes | None:
    """The certificates to check the backend's with, as PEM; None: gRPC's own list.

    Those of ``rpc_tls_root_ca``, a file or PEM text; if that is empty, the system's (gRPC would prefer its own).
    Raises ConfigurationError for a file that cannot be read and for what holds no certificate.
    """
    given = settings["rpc_tls_root_ca"]
    return read_authorities(given)[0] if given else _system_authorities()


def _system_authorities() -> bytes | None:
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return Path(paths.cafile).read_bytes()
    if paths.capath:
        # In such a directory every certificate is linked under its hash.
        found = [each.read_bytes() for each in sorted(Path(paths.capath).glob("????????.[0-9]"))]
        return b"\n".join(found) or None
    return None


class Tunnel:
    """Takes gRPC's connections at a socket of the file system and leads each to host and port over unchecked TLS.

    gRPC cannot be told to believe whoever answers. Its connections are therefore made to ``target``, in a directory
    that only this user may enter, and encrypted here. A connection that cannot be led on is closed.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["h2"])
        self._directory = tempfile.TemporaryDirectory(prefix="anycable-tx-")
        path = os.path.join(self._directory.name, "backend")
        #: Waits for connections from now on; they are led on once ``run`` does its work.
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        self._leading: set[asyncio.Task[None]] = set()
        self.target = f"unix:{path}"
        #: Why the last connection could not be made; '' if it could.
        self.problem = ""

    async def run(self) -> None:
        """Lead connections on until cancelled, then end them all."""
        try:
            server = await asyncio.start_unix_server(self._lead, sock=self._socket)
            async with server:
                await server.serve_forever()
        finally:
            for task in self._leading:
                task.cancel()
            self.close()

    def close(self) -> None:
        """Take no more connections."""
        self._socket.close()
        self._directory.cleanup()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._leading.add(task)
        with suppress(asyncio.CancelledError):  # the end of ``run``: nobody else waits for this task
            try:
                far = await asyncio.open_connection(self._host, self._port, ssl=self._context)
                self.problem = ""
            except OSError as e:
                self.problem = str(e)
            else:
                await _join(reader, writer, *far)
        writer.close()
        self._leading.discard(task)


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Copy both ways until one side ends; then both end."""
    ways = [
        asyncio.ensure_future(_copy(reader, far_writer)),
        asyncio.ensure_future(_copy(far_reader, writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # lost, which ends it as well
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
