"""MFM-DA, equation by equation: adapt a segmenter to a new camera with ten unlabelled images.

`from mfmda import adapt, Segmenter, FundusSet, Task`: each is loaded when it is first asked for.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "adapt": "mfmda.use.camera",
    "Segmenter": "mfmda.stage2.segmenter",
    "FundusSet": "mfmda.data.sets",
    "Task": "mfmda.data.readers",
}
__all__ = ["FundusSet", "Segmenter", "Task", "adapt"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
