"""What the delivery machines are made of: a world to run in, a client, and a judge that only keeps lists.

``ledger`` is the model, a list of messages for each stream. ``wire`` models one TCP connection, judges every frame
the moment the server writes it (P1, P2, P4), and can lose any number of frames at the end. ``client`` does what the
official client does with the frames that reach it, and ``feed`` judges what it got in the end (P3). ``world`` holds
the real node, broker and fan-out, on a clock; ``bus`` is a bus that loses, repeats, reorders and delays.

Two Hypothesis profiles are registered here. ``SETTINGS`` is the one in use: ``anycable-ci``, or
``anycable-nightly`` with so many examples that a run takes about ten minutes when the environment has
``ANYCABLE_TX_HYPOTHESIS=nightly``.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["SETTINGS"]

_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)

settings.register_profile(
    "anycable-ci",
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=_CHECKS,
)
settings.register_profile("anycable-nightly", settings.get_profile("anycable-ci"), max_examples=7000)

SETTINGS = settings.get_profile(
    "anycable-nightly" if os.environ.get("ANYCABLE_TX_HYPOTHESIS") == "nightly" else "anycable-ci"
)
