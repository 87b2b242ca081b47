"""Functions that run before or after one module is imported, without touching its file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib.abc import Loader
from types import ModuleType
from typing import Any


class ModuleFinder:
    """A finder for `sys.meta_path` that leaves the search to the others and wraps the loader of one module.

    Args:
        module: The name of the module.
        before: Called before the module runs.
        after: Called with the module after it has run.
    """

    def __init__(
        self,
        module: str,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[ModuleType], None] = lambda module: None,
    ):
        self.module, self.before, self.after = module, before, after
        self._searching = threading.local()

    def install(self) -> None:
        """Put this finder first, unless there is one for the module already, and apply it to a loaded module."""
        if not any(isinstance(finder, ModuleFinder) and finder.module == self.module for finder in sys.meta_path):
            sys.meta_path.insert(0, self)
        if self.module in sys.modules:
            self.after(sys.modules[self.module])

    def find_spec(self, name: str, path=None, target=None):
        # The others may ask this finder again: the `.pth` file's function does, and so did an earlier release's.
        if name != self.module or getattr(self._searching, "now", False):
            return None
        self._searching.now = True
        try:
            for finder in sys.meta_path:
                spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = WrappedLoader(spec.loader, self)
                    return spec
        finally:
            self._searching.now = False
        return None


class WrappedLoader(Loader):
    """The module's own loader with the two calls around it; afterwards the module has its own loader again."""

    def __init__(self, loader: Any, finder: ModuleFinder):
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not set yet, as while being copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._finder.before()
        self._loader.exec_module(module)
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._finder.after(module)
