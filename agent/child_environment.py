"""The environment of child processes: what their libraries read, and no secret of the agent's.

Imports nothing but Python's own: the child of `agent run` is started before all else.
"""

import os
from collections.abc import Mapping
from typing import Final

_NAMES: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
    *("XDG_CACHE_HOME", "VIRTUAL_ENV", "CUDA_HOME", "DO_NOT_TRACK"),
)
_PREFIXES: Final = (
    *("LC_", "LD_", "MALLOC_", "PYTHON", "ORT_", "HF_HUB_", "OPENVINO_", "OV_", "ONEDNN_"),
    *("OMP_", "GOMP_", "KMP_", "TBB_", "MKL_", "OPENBLAS_", "OPENCV_"),
    *("CUDA_", "NVIDIA_", "TRT_", "TENSORRT_", "GENICAM_", "PYLON_"),
)


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a child gets of `environment`; any name may be that of the broker's password."""
    return {
        name: value
        for name, value in environment.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and "PASSWORD" not in name.upper()
    }
