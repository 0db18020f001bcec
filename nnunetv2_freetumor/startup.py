"""Let nnU-Net find the trainers: runs at every Python start, from the start-up files that `_build.py` writes.

nnU-Net searches the folders in the environment variable `nnUNet_extTrainer`, which spawned children inherit.
"""

import os

VARIABLE = "nnUNet_extTrainer"
EXT_TRAINER = os.path.join(os.path.dirname(__file__), "ext_trainer")


def extend() -> None:
    """Append the folder of trainers to `nnUNet_extTrainer`, once, behind whatever the user has put there."""
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    if EXT_TRAINER not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, EXT_TRAINER])
