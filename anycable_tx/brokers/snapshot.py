"""The file a memory broker is written to when it stops, and read from when it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from anycable_tx.errors import AnyCableError, ConfigurationError

__all__ = ["BadSnapshot", "Loaded", "Snapshot"]

_MAGIC = b"anycable-tx memory broker snapshot"
_VERSION = 1
_HEADER = b"%s %d %s\n"
#: By how many seconds the wall clock may have been set back while the server was away.
_CLOCK_TOLERANCE = 5


class BadSnapshot(AnyCableError):
    """The file is there but cannot be used; the text says why."""


class Loaded(NamedTuple):
    """A good snapshot: its epoch, for how many seconds the server was away, and the stores' rows."""

    epoch: str
    down: float
    rows: Iterator[Any]


class Snapshot:
    """One file: a header line with the format's version and a SHA-256 of the rest, then a JSON value a line.

    It is only ever there between a graceful stop and the next start. A snapshot that outlived a run would give
    its offsets out a second time, so it is deleted before anything of it is served.
    """

    def __init__(self, path: str, max_age: float) -> None:
        """*path* of the file; one that is older than *max_age* seconds is not used."""
        self.path = os.path.abspath(path)
        self._max_age = max_age
        self._temporary = f"{self.path}.tmp"

    def check(self) -> None:
        """Raises ConfigurationError unless the file can be written later."""
        try:
            if os.path.isdir(self.path):
                raise IsADirectoryError(0, "it is a directory")
            os.close(self._create())
            os.unlink(self._temporary)
        except OSError as e:
            raise ConfigurationError(
                f"broker_snapshot: {self.path!r} cannot be written: {e.strerror}; expected a file in a directory "
                "this user may write to"
            ) from e

    def write(self, epoch: str, wall: float, rows: Iterable[list[Any]]) -> None:
        """Put a snapshot in place, readable by this user only; either the whole one or none. Raises OSError."""
        digest = sha256()
        try:
            with open(self._create(), "wb") as file:
                file.write(_HEADER % (_MAGIC, _VERSION, digest.hexdigest().encode()))
                file.write(_line(["snapshot", epoch, wall], digest))
                for row in rows:
                    file.write(_line(row, digest))
                file.seek(0)
                file.write(_HEADER % (_MAGIC, _VERSION, digest.hexdigest().encode()))
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(self._temporary)
            raise
        self._sync_directory()

    def take(self, wall: float) -> Loaded | None:
        """The snapshot, whose file is gone from then on; None when there is no file.

        Raises BadSnapshot for one that is unreadable, not ours, of another version, damaged or too old; it is
        renamed to end in ``.rejected``, so that nothing that is not ours gets lost. Raises ConfigurationError when
        the file cannot be removed.
        """
        try:
            with open(self.path, "rb") as file:
                loaded = self._parse(file.read(), wall)
        except FileNotFoundError:
            return None
        except OSError as e:
            self._remove(keep=True)
            raise BadSnapshot(f"it cannot be read: {e.strerror}") from e
        except BadSnapshot:
            self._remove(keep=True)
            raise
        self._remove()
        return loaded

    def _parse(self, data: bytes, wall: float) -> Loaded:
        header, _, body = data.partition(b"\n")
        if not header.startswith(_MAGIC + b" "):
            raise BadSnapshot("it is not a snapshot of this broker")
        version, _, checksum = header[len(_MAGIC) + 1 :].partition(b" ")
        if version != b"%d" % _VERSION:
            raise BadSnapshot(f"its format is version {version.decode('ascii', 'replace')}, not {_VERSION}")
        if checksum != sha256(body).hexdigest().encode():
            raise BadSnapshot("its checksum is wrong: it is damaged or not complete")
        rows = map(orjson.loads, body.splitlines())
        try:
            _, epoch, written = next(rows)
            down = float(wall - written)
        except (StopIteration, ValueError, TypeError) as e:
            raise BadSnapshot("its first row is not understood") from e
        if down > self._max_age:
            raise BadSnapshot(f"it is {down:.0f} s old and no message is kept for more than {self._max_age:g} s")
        if down < -_CLOCK_TOLERANCE:
            raise BadSnapshot("it was written in the future: the clock was set back")
        return Loaded(epoch, max(down, 0.0), rows)

    def _remove(self, keep: bool = False) -> None:
        try:
            if keep:
                os.replace(self.path, f"{self.path}.rejected")
            else:
                os.unlink(self.path)
            self._sync_directory()
        except OSError as e:
            raise ConfigurationError(
                f"broker_snapshot: {self.path!r} cannot be removed before serving: {e.strerror}"
            ) from e

    def _create(self) -> int:
        with suppress(FileNotFoundError):
            os.unlink(self._temporary)
        return os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def _sync_directory(self) -> None:
        directory = os.open(os.path.dirname(self.path), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _line(row: list[Any], digest: Any) -> bytes:
    line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    digest.update(line)
    return line
