"""Read a checkpoint that is a pickle without executing anything that it holds."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [  # beyond torch's own list: scores, which trainings store as NumPy scalars
    np.dtype,
    type(np.dtype("float32")),
    type(np.dtype("float64")),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 writes it
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),  # as NumPy 2 does
]


CHECKPOINT = "checkpoint_final.pth"


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint's tensors, numbers, texts and containers of these onto the CPU.

    Raises:
        ValueError: the file is missing or damaged, or contains anything else; nothing in it is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}. Give the path of a file written by torch.save.")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way there is
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} may contain only tensors, numbers and strings, but it requests {asked[1]}; nothing in it was "
                "executed. If you trust its source, save only its 'state_dict' with torch.save and use that file."
            ) from error
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). It must be a complete file written by "
            "torch.save; an interrupted download causes this error: download it again."
        ) from error
