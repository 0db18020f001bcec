"""Networks on the CPU: single patches are computed as pairs, and nothing else changes."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_freetumor.experiments.demo.trainer import nnUNetTrainerFreeTumor_demo
from nnunetv2_freetumor.experiments.study.trainers import nnUNetTrainerFreeTumor_study_real
from nnunetv2_freetumor.trainer import nnUNetTrainerFreeTumor
from nnunetv2_freetumor.training.cpu_trainer import PairsOnCpu, compute_in_pairs

pytest_plugins = ["tiny_trainings"]

seen = []


class Network(nn.Module):
    """A network without batch statistics that notes the size of its batches."""

    def __init__(self, deep):
        super().__init__()
        self.deep = deep
        self.layers = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2, affine=True))

    def forward(self, x):
        seen.append(len(x))
        y = self.layers(x)
        return [y, y[..., ::2]] if self.deep else y


def test_a_single_patch_is_computed_as_a_pair_and_gives_the_same():
    network, patch = Network(deep=False).eval(), torch.randn(1, 1, 6, 8, 8)
    expected, weights = network(patch), list(network.state_dict())
    paired = compute_in_pairs(network)
    assert torch.allclose(paired(patch), expected, atol=1e-5) and paired(patch).shape == expected.shape
    assert seen[-1] == 2
    assert list(paired.state_dict()) == weights


def test_deep_supervision_keeps_its_levels_and_a_batch_stays_as_it_is():
    paired = compute_in_pairs(Network(deep=True))
    assert [len(level) for level in paired(torch.randn(1, 1, 6, 8, 8))] == [1, 1]
    assert [len(level) for level in paired(torch.randn(3, 1, 6, 8, 8))] == [3, 3] and seen[-1] == 3


def test_the_trainers_made_for_two_cores_use_it_and_the_product_s_own_does_not():
    assert issubclass(nnUNetTrainerFreeTumor_demo, PairsOnCpu)
    assert issubclass(nnUNetTrainerFreeTumor_study_real, PairsOnCpu)
    assert not issubclass(nnUNetTrainerFreeTumor, PairsOnCpu)


@pytest.mark.slow
def test_the_network_is_nnunets_own(make_trainer):
    made, plain = make_trainer(nnUNetTrainerFreeTumor_demo), make_trainer(nnUNetTrainer)
    for trainer in (made, plain):
        trainer.initialize()
    assert list(made.network.state_dict()) == list(plain.network.state_dict())
    assert made.network.forward.__name__ == "paired"
