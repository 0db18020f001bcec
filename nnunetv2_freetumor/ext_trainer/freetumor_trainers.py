from nnunetv2_freetumor.demo_trainer import *  # noqa: F403
from nnunetv2_freetumor.generator_trainer import *  # noqa: F403
from nnunetv2_freetumor.study_trainers import *  # noqa: F403
from nnunetv2_freetumor.trainer import *  # noqa: F403
