"""An embedded store."""

from tests.mlflow_store import store, store_template

__all__ = ["store", "store_template"]
