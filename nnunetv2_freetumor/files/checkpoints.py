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
        ValueError: the file is missing or damaged, or holds anything else; nothing of it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}. Give the path of the file that torch.save wrote.")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way there is
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} may hold tensors, numbers and texts only, but it asks for {asked[1]}; nothing of it was "
                "executed. If you trust where it comes from, save its 'state_dict' alone with torch.save and give that "
                "file."
            ) from error
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). It must be a whole file as torch.save "
            "writes it; a download that broke off ends this way: get it again."
        ) from error
