from nnunetv2_freetumor.trainer import *  # noqa: F403
