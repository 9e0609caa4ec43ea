from tests.local.conftest import place

__all__ = ["place"]
