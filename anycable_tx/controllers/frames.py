"""The two answers to a subscribe; the client gets back the very identifier it sent."""

from __future__ import annotations

from anycable_tx.cable.codec import confirm_frame, reject_frame

__all__ = ["confirm_frame", "reject_frame"]
