"""Fixtures for the chaos tests."""

from support.postgres import killable_postgres

__all__ = ["killable_postgres"]
