"""The constant generator, which the study trains with and realism takes as a control."""

import torch
from synthesis_examples import PRIOR, make_look, make_region

from nnunetv2_freetumor.experiments.constant import CONSTANT_HU, ConstantGenerator
from nnunetv2_freetumor.experiments.realism.contestants import make_contestants
from nnunetv2_freetumor.experiments.study import trainers
from nnunetv2_freetumor.synthesis.region import Region


def test_the_edge_is_sharp_and_averaged_over_the_voxel_that_it_crosses():
    whole = make_region()
    side = len(whole.hu)
    along = torch.arange(2 * side) - side - 0.5  # two subvoxels in each voxel; the surface halves one in the middle
    distance_mm = along.reshape(-1, 1, 1).repeat(1, side, side)
    region = Region(*whole[:3], distance_mm, (2, 1, 1), *whole[5:])
    contrast_hu = ConstantGenerator()(region, PRIOR.texture, make_look())[:, 0, 0].tolist()
    assert contrast_hu == [CONSTANT_HU] * (side // 2) + [CONSTANT_HU / 2] + [0.0] * (side // 2 - 1)


def test_study_and_realism_use_the_same_one():
    (contestant,) = make_contestants(["constant"], "liver", 0)
    assert type(contestant.build(torch.device("cpu"))) is trainers.ConstantGenerator is ConstantGenerator
    assert contestant.identity, "lesions measured with the former edge are not read again"
