"""The share of planted lesions that the training network recognizes: counted by hand, followed through mirroring."""

import math

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from synthesis_examples import make_section
from torch import distributed as dist
from torch import nn

from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import SIZE_NAMES
from nnunetv2_freetumor.synthesis.compose import Change
from nnunetv2_freetumor.synthesis.planter import Lesion
from nnunetv2_freetumor.synthesis.region import Site
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.synthesis.volume import Box
from nnunetv2_freetumor.training import epoch_log
from nnunetv2_freetumor.training.augmentation import augment
from nnunetv2_freetumor.training.recognition import (
    RECOGNIZED,
    WATCHED,
    Watch,
    lesion_ids,
    recognized_share,
    tumor_channel,
)

CPU = torch.device("cpu")
LABELS = LabelManager({"background": 0, "organ": 1, "tumor": 2}, None)
REGIONS = LabelManager({"background": 0, "organ": [1, 2], "tumor": 2}, [1, 2])


class Says(nn.Module):
    """A network that says what it was told to say."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def lesion(start, stop, diameter_mm, sample=0, kept=True):
    mask = torch.ones(*(b - a for a, b in zip(start, stop)), dtype=torch.bool)
    site = Site(sample, 0, [0.0, 0.0, 0.0], diameter_mm, Box(start, stop))
    return Lesion(site, Change(torch.tensor(kept), *torch.zeros(3)), mask, visible=torch.tensor(True))


LESIONS = [  # 8 voxels each: of 12, 8 and 30 mm; the last one was not planted
    lesion((0, 0, 0), (2, 2, 2), 12.0),
    lesion((4, 4, 4), (6, 6, 6), 8.0, sample=1),
    lesion((4, 0, 0), (6, 2, 2), 30.0),
    lesion((0, 4, 4), (2, 6, 6), 12.0, kept=False),
]


def called(*boxes):
    """Mark the voxels that the network calls tumor."""
    marked = torch.zeros(2, 1, 8, 8, 8)
    for sample, start, stop in boxes:
        marked[(sample, 0, *(slice(a, b) for a, b in zip(start, stop)))] = 1.0
    return marked


# half of the first lesion, all of the second, 5 of 8 voxels' worth (one layer of two) of the third
MARKED = called((0, (0, 0, 0), (2, 2, 1)), (1, (4, 4, 4), (6, 6, 6)), (0, (4, 0, 0), (5, 2, 2)))


def look(watch, network, training=True):
    label = torch.zeros(2, 1, 8, 8, 8, dtype=torch.int16)
    watch.expect(LESIONS, lesion_ids(LESIONS, label))
    watch.attach(network)
    network.train(training)(torch.zeros(2, 1, 8, 8, 8))
    return watch.read(CPU)


def softmax_logits(marked):
    return torch.cat([torch.full_like(marked, 0.5), torch.zeros_like(marked), marked], dim=1)


@pytest.mark.parametrize("wrap", [lambda output: output, lambda output: [output, output[:, :, ::2]]])
def test_a_lesion_counts_where_enough_of_its_voxels_are_called_tumor(wrap):
    counts = look(Watch(make_section(), LABELS), Says(wrap(softmax_logits(MARKED))))
    assert [counts[name] for name in WATCHED] == [1, 1, 1, 0]  # by size; the lesion that was not planted is not asked
    assert [counts[name] for name in RECOGNIZED] == [1, 1, 0, 0]  # 100 % of 8 mm, 50 % of 12 mm, 50 % of 30 mm
    assert recognized_share(counts) == pytest.approx(2 / 3)


def test_regions_are_read_from_the_smallest_one_that_holds_the_tumor():
    assert (tumor_channel(LABELS, 2), tumor_channel(REGIONS, 2)) == (2, 1)
    logits = torch.cat([torch.full_like(MARKED, 5.0), MARKED - 0.5], dim=1)
    counts = look(Watch(make_section(), REGIONS), Says(logits))
    assert [counts[name] for name in RECOGNIZED] == [1, 1, 0, 0]


def test_validation_is_not_watched_and_an_epoch_starts_from_nothing():
    watch = Watch(make_section(), LABELS)
    assert sum(look(watch, Says(softmax_logits(MARKED)), training=False).values()) == 0
    assert sum(look(watch, Says(softmax_logits(MARKED))).values()) > 0
    assert sum(watch.read(CPU).values()) == 0 and math.isnan(recognized_share(watch.read(CPU)))


def test_a_process_that_watched_no_lesion_takes_part_in_the_sum_that_the_others_wait_for(monkeypatch):
    summed = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: summed.append(sums.add_(3.0)))
    watch = Watch(make_section(), LABELS)
    watch.attach(nn.Conv3d(1, 3, 1))
    assert set(watch.read(CPU).values()) == {3.0} and len(summed) == 1
    assert set(watch.read(CPU).values()) == {3.0}, "the sum of an epoch does not stay for the next"


def test_a_compiled_network_is_watched_too():
    network = nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    counts = look(Watch(make_section(), LABELS), torch.compile(network, backend="eager"))
    assert [counts[name] for name in RECOGNIZED] == [1, 1, 1, 0]


def test_what_was_planted_is_marked_and_follows_the_label_through_mirroring(organ_phantom):
    synthesizer = Synthesizer(make_section(), organ_phantom.spacing_mm, RAW_CT)
    label = organ_phantom.label.repeat(3, 1, 1, 1, 1)
    image = organ_phantom.image.repeat(3, 1, 1, 1, 1)
    planted = synthesizer(image, label, synthesizer.draw(3, torch.Generator().manual_seed(3)))
    ids = lesion_ids(planted.lesions, planted.label)
    assert torch.equal(ids > 0, planted.label != label) and ids.max() == len(planted.lesions) > 2
    mirror = ComposeTransforms([MirrorTransform((0, 1, 2))])
    turned = augment(mirror, planted.image, label=planted.label, ids=ids)
    assert torch.equal(turned.ids > 0, turned.target == 2) and not torch.equal(turned.ids, ids)


def test_a_transform_that_loses_the_marks_switches_the_count_off():
    watch = Watch(make_section(), LABELS)
    watch.expect(LESIONS, None)
    watch.attach(network := Says(softmax_logits(MARKED)))
    network(torch.zeros(2, 1, 8, 8, 8))
    assert sum(watch.read(CPU).values()) == 0


def test_the_log_gives_shares_by_size():
    counts = dict.fromkeys((*WATCHED, *RECOGNIZED), 0.0)
    assert epoch_log.recognition_line(counts) == "FreeTumor: planted lesions recognized: no lesion was planted"
    counts |= {WATCHED[0]: 10.0, WATCHED[1]: 11.0, RECOGNIZED[1]: 1.0, WATCHED[2]: 29.0, RECOGNIZED[2]: 9.0}
    assert epoch_log.recognition_line(counts) == (
        "FreeTumor: planted lesions recognized: 20 % (<10 mm 0, 10-20 mm 9, 20-50 mm 31)"
    )
    assert len(SIZE_NAMES) == len(WATCHED) == len(RECOGNIZED)


@pytest.mark.parametrize(("recognized", "warned"), [(0.0, [3]), (1.0, [])])
def test_a_training_that_recognizes_nothing_is_warned_of_once(recognized, warned, tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    epoch_log.register(logger, 0)
    found = []
    for epoch in range(6):
        for name in epoch_log.LOGGED:
            value = {WATCHED[1]: 5.0, RECOGNIZED[1]: recognized}.get(name, 0.0)
            logger.log(epoch_log.COUNT_KEY + name, value, epoch)
        found += [(epoch + 1, text) for text in epoch_log.slow_start(logger, epochs=30)]
    assert [epochs for epochs, _ in found] == warned
    assert all("recognizes none of the 15 lesions planted so far" in text for _, text in found)
