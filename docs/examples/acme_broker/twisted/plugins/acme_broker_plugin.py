"""Declares the broker: names and a dotted path, nothing that imports it."""

from anycable_tx.config.option import Option
from anycable_tx.providers import Provider

acme_broker = Provider(
    kind="broker",
    name="acme",
    factory="acme_broker:create",
    options=(
        Option(
            "acme_label", default="example", key="acme.label", section="Acme", help="shown when the server starts"
        ),
    ),
)
