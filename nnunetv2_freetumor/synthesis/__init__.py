"""The method: an HU patch and a draw in, a patch with planted lesions and their masks out."""

from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer

__all__ = ["Synthesizer"]
