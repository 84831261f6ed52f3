"""Fixtures of the integration tests."""

from support.cosmos_stores import cosmos_access, cosmos_server, cosmos_url

__all__ = ["cosmos_access", "cosmos_server", "cosmos_url"]
