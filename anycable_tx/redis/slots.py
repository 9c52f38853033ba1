"""Which slot of a cluster a key belongs to."""

from __future__ import annotations

from binascii import crc_hqx

__all__ = ["SLOTS", "slot_of"]

SLOTS = 16384


def slot_of(key: str) -> int:
    """The slot of *key*: of what is between the first ``{`` and the next ``}``, if there is anything."""
    data = key.encode()
    begin = data.find(b"{")
    if begin >= 0:
        end = data.find(b"}", begin + 1)
        if end > begin + 1:
            data = data[begin + 1 : end]
    return crc_hqx(data, 0) % SLOTS
