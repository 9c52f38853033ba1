"""Somebody who asks a server for its metrics again and again, as Prometheus does."""

from __future__ import annotations

import threading
import urllib.request
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Sample", "Scraper", "scrape"]

#: A full name and a reason ('' without one).
Sample = tuple[str, str]


def scrape(url: str) -> tuple[dict[Sample, float], set[Sample]]:
    """The samples that *url* answers with, and which of them are counters."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    values: dict[Sample, float] = {}
    counters: set[Sample] = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, sample.labels.get("reason", "")
            values[key] = sample.value
            if family.type == "counter":
                counters.add(key)
    return values, counters


class Scraper(threading.Thread):
    """Asks *url* every *interval* seconds while the block runs. ``shrunk`` has the counters that ever went back."""

    def __init__(self, url: str, interval: float = 0.5) -> None:
        super().__init__()
        self._url = url
        self._interval = interval
        self._ending = threading.Event()
        self.count = 0
        self.values: dict[Sample, float] = {}
        self.shrunk: set[Sample] = set()
        self.failure: Exception | None = None

    def __enter__(self) -> Scraper:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._ending.set()
        self.join()
        if self.failure is not None and e is None:
            raise self.failure

    def run(self) -> None:
        """In the thread."""
        while not self._ending.wait(self._interval):
            try:
                self.look()
            except Exception as e:
                self.failure = e
                return

    def look(self) -> dict[Sample, float]:
        """Ask now."""
        values, counters = scrape(self._url)
        self.shrunk |= {key for key in counters if values[key] < self.values.get(key, 0)}
        self.values = values
        self.count += 1
        return values
