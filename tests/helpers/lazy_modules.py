"""SpeechBrain's lazy modules and hypothesis in one process."""

import sys


def forget_lazy_modules() -> None:
    """Take modules that SpeechBrain would only import on use out of `sys.modules`.

    Hypothesis reads `__file__` of every module there, and some of these then fail to import an optional package.
    """
    if "speechbrain.utils.importutils" not in sys.modules:
        return
    from speechbrain.utils.importutils import LazyModule

    for name, module in list(sys.modules.items()):
        if isinstance(module, LazyModule):
            del sys.modules[name]
