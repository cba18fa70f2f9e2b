"""The tiny model that all wrappers are tried on."""

from tests.integrations.conformance import engine, tiny_settings

__all__ = ["engine", "tiny_settings"]
