"""The architectures: each file of this package registers its own with `utils.registry.register_model`."""

import importlib
import pkgutil

from utils.models.base import ModelError, build_model, list_models

__all__ = ["ModelError", "build_model", "list_models"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
