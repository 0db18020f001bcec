"""`generator convert`: turn the authors' checkpoint into a generator file with a card."""

import datetime
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.files.cases import check_writable
from nnunetv2_freetumor.files.checkpoints import read_checkpoint
from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.generators.networks import FreeTumorNet
from nnunetv2_freetumor.generators.weights import GENERATOR_ENDING, check_tensors, save_generator

PREFIX, WRAPPER = "netG.", "module."
LAST_LAYER = "out_tr.final_conv.weight"
UNUSED = ("running_mean", "running_var", "num_batches_tracked")  # published, never used: they may be missing
REGIONS = {3: "abdomen", 1: "chest"}  # by number of output channels
CHANNEL_HOSTS = {  # what the output channels stand for, in their order; the default first
    "abdomen": (("liver", "pancreas", "kidney"),),
    "chest": (("lung",), ("covid19",)),
}
_ALL: dict[str, Any] = {
    "kind": "freetumor",
    "recipe": "as published: FreeTumor, Nature Communications 16:11053 (2025), arXiv 2502.18519",
    "judge": "the authors' baseline segmenter",
    "not_seen": "unknown, as the checkpoint does not list its training cases; no case of a public dataset is "
    "independent of it",
    "license": "Apache-2.0, as the authors' published code",
}
_BY_REGION: dict[str, dict[str, Any]] = {
    "abdomen": {
        "window_hu": (-175.0, 250.0),
        "spacing_mm": (1.5, 1.5, 1.5),
        "side_voxels": (96, 96, 96),
        "sign": -1,
        "activation": "tanh",
        "training_data": "the authors' CT of the abdomen, with and without annotated tumors (see the paper)",
        "purpose": "tumors of liver, pancreas and kidney in CT",
    },
    "chest": {
        "window_hu": (-1000.0, 500.0),
        "spacing_mm": (1.25, 1.25, 5.0),
        "side_voxels": (192, 192, 32),
        "sign": 1,
        "activation": "sigmoid",
        "training_data": "the authors' CT of the chest, with and without annotated lesions (see the paper)",
        "purpose": "lesions of the lung in CT",
    },
}


class Published(NamedTuple):
    """The generator's weights in a checkpoint, and how many weights of other networks lie beside them."""

    tensors: dict[str, Tensor]  # names without prefix
    others: dict[str, int]  # by prefix


def convert_command(
    checkpoint: str, output: str, region: str | None = None, host: str | None = None, name: str | None = None
) -> None:
    """Convert a published checkpoint and print the result.

    Args:
        checkpoint: the authors' file; read without executing anything in it.
        output: generator file to write.
        region: abdomen or chest (default: determined by the number of output channels).
        host: for a chest checkpoint: lung or covid19 (default: lung).
        name: the generator's name on its card.

    Raises:
        ValueError: the checkpoint or an option does not fit; the text says why.
    """
    if not output.endswith(GENERATOR_ENDING):
        raise ValueError(f"-o must name a file that ends in {GENERATOR_ENDING}, but it is {output}.")
    if Path(output).exists():
        raise ValueError(f"{output} already exists and is not overwritten. Choose another file with -o, or delete it.")
    published = split_checkpoint(read_checkpoint(checkpoint), checkpoint)
    channels = len(published.tensors[LAST_LAYER])
    card = published_card(_region(channels, region, checkpoint), host, name)
    network = FreeTumorNet(channels)
    unused = {key: value for key, value in network.state_dict().items() if key.endswith(UNUSED)}
    tensors = unused | published.tensors
    check_tensors(tensors, card, checkpoint)
    network.load_state_dict(tensors)
    check_writable(Path(output).parent)
    save_generator(network, card, output)
    skipped = ", ".join(f"{count} of {prefix}" for prefix, count in published.others.items()) or "none"
    print(
        f"Converted {len(published.tensors)} weights of the generator (skipped weights of other networks: {skipped})."
    )
    print(f"Wrote {output}: '{card.name}', for {', '.join(card.hosts)}.")
    print(f"To use it by name: nnUNetv2_freetumor generator install {output}")


def split_checkpoint(checkpoint: Any, path: str | Path) -> Published:
    """Pick the generator's weights out of a checkpoint.

    Raises:
        ValueError: there are none, or they lack the layer that determines the number of organs.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(key).removeprefix(WRAPPER): value for key, value in items if isinstance(value, Tensor)}
    wrapped = any(key.startswith(PREFIX) for key in tensors)
    own = {key: value for key, value in tensors.items() if key.startswith(PREFIX) or not wrapped}
    others = Counter(f"{key.split('.')[0]}." for key in tensors if key not in own)
    generator = {key.removeprefix(PREFIX).removeprefix(WRAPPER): value for key, value in own.items()}
    if LAST_LAYER not in generator or generator[LAST_LAYER].ndim != 5:
        found = ", ".join(list(tensors)[:3]) or "no weights at all"
        raise ValueError(
            f"{path} must contain the published generator, including its last layer {PREFIX}{LAST_LAYER}, but it "
            f"contains {found}{' ...' if len(tensors) > 3 else ''}. Use the checkpoint of the authors' generator "
            "training."
        )
    return Published(generator, dict(others))


def published_card(region: str, host: str | None = None, name: str | None = None) -> Card:
    """Write the card of a published generator.

    Raises:
        ValueError: `host` is not one that the region offers.
    """
    hosts = next((hosts for hosts in CHANNEL_HOSTS[region] if host is None or hosts == (host,)), None)
    if hosts is None:
        chest = " or ".join(choice for (choice,) in CHANNEL_HOSTS["chest"])
        raise ValueError(f"--host must be {chest} for the chest and omitted for the abdomen, but it is '{host}'.")
    return Card(
        name=name or f"freetumor_{hosts[0] if len(hosts) == 1 else region}",
        hosts=hosts,
        real_tumors=hosts,
        date=datetime.date.today().isoformat(),
        version=__version__,
        **_ALL,
        **_BY_REGION[region],
    )


def _region(channels: int, region: str | None, path: str | Path) -> str:
    """Determine the region from the number of output channels."""
    if channels not in REGIONS:
        choices = " or ".join(f"{count} ({found})" for count, found in REGIONS.items())
        raise ValueError(f"{path} must contain a generator with {choices} output channels, but it has {channels}.")
    found = REGIONS[channels]
    if region not in (None, found):
        raise ValueError(
            f"--region must be {found} for {path}, whose generator has {channels} output channel(s), but it is "
            f"'{region}'. Omit --region."
        )
    return found
