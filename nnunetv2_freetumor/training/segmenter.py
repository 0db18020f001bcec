"""A frozen segmenter: its network, the images that it was trained on, and which of its outputs means which label."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nnunetv2_freetumor.generators.cpu_doubling import call_in_pairs
from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.synthesis.volume import Spacing

Axes = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class FrozenSegmenter:
    """A trained network in its own plans' terms; nothing here changes a weight."""

    name: str  # for people: model folder and fold
    network: nn.Module
    intensity: Intensity  # of its z-scores
    spacing_mm: Spacing  # of the arrays given to it, in their axis order
    patch_size: Axes  # voxels, likewise
    labels: dict[str, Any]  # of its dataset.json
    dataset: str = ""  # that it was trained on
    has_regions: bool = False
    transpose_forward: Axes = (0, 1, 2)  # the axis of a raw volume behind each axis of the arrays given to it
    order: Axes = (0, 1, 2)  # the axis of those arrays behind each axis of the network's input

    def along(self, transpose_forward: Sequence[int]) -> "FrozenSegmenter":
        """Take arrays whose axes are those of other plans from now on."""
        raw = [self.transpose_forward[axis] for axis in self.order]  # the raw axis behind each of the network's
        own = [raw.index(axis) for axis in transpose_forward]  # the network's axis behind each of the new arrays'
        before = [self.order[axis] for axis in own]  # and the axis of the arrays until now
        x, y, z = before
        a, b, c = (own.index(axis) for axis in range(3))
        return dataclasses.replace(
            self,
            spacing_mm=(self.spacing_mm[x], self.spacing_mm[y], self.spacing_mm[z]),
            patch_size=(self.patch_size[x], self.patch_size[y], self.patch_size[z]),
            transpose_forward=(transpose_forward[0], transpose_forward[1], transpose_forward[2]),
            order=(a, b, c),
        )

    def channel(self, label: str) -> int:
        """Find the output that means a label.

        Raises:
            ValueError: the segmenter knows no such label; the text names those that it knows.
        """
        regions = [name for name, value in self.labels.items() if name != "ignore" and value not in (0, [0])]
        if label in regions:
            value = self.labels[label]
            return regions.index(label) if self.has_regions else value if isinstance(value, int) else value[0]
        raise ValueError(
            f"The judge {self.name} knows the labels {', '.join(map(repr, regions))}, but none is called '{label}', as "
            "this dataset's dataset.json calls the tumor. Labels are matched by name: choose a judge trained on this "
            'dataset, or set "judge": "off" in the plans\' freetumor section.'
        )

    def logits(self, z: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b c x y z"]:
        """Run the network on windows in the segmenter's own z-scores, spacing and patch size."""
        outputs = call_in_pairs(self.network, z.permute(0, 1, *(2 + axis for axis in self.order)))
        back = (2 + self.order.index(axis) for axis in range(3))
        return (outputs[0] if isinstance(outputs, list | tuple) else outputs).permute(0, 1, *back)

    def recognized(self, logits: Float[Tensor, "b c x y z"], channel: int) -> Bool[Tensor, "b x y z"]:
        """Mark the voxels called a label, or a region, as nnU-Net decides it: the largest output, or above one half."""
        return logits[:, channel] > 0 if self.has_regions else logits.argmax(1) == channel

    def probability(self, logits: Float[Tensor, "b c x y z"], channel: int) -> Float[Tensor, "b x y z"]:
        """Give the probability of a label or region."""
        return logits[:, channel].sigmoid() if self.has_regions else torch.softmax(logits, 1)[:, channel]
