"""anycable-tx: a realtime server for Twisted, speaking the Action Cable protocols."""

__version__ = "0.1.0"
__all__ = ["__version__"]
