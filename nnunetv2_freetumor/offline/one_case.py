"""Plant tumors into one raw CT case, without any nnU-Net dataset."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_freetumor import __version__, priors
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.files.cases import SLICE_AXIS, case_name
from nnunetv2_freetumor.generators import choice
from nnunetv2_freetumor.offline.planting import Planting, plant, real_tumor_note
from nnunetv2_freetumor.offline.provenance import describe_lesion
from nnunetv2_freetumor.plan import Prior, Section, SizeClass, Target, always_planting
from nnunetv2_freetumor.planning.roles import LUNG_HU
from nnunetv2_freetumor.training.device import choose_device

_LUNG_PRIORS = ("lung", "covid19")


def synthesize_case(
    image: str | Path,
    label: str | Path,
    output: str | Path,
    prior: str,
    tumor: int,
    host: int | Sequence[int] | None = None,
    lesions: int = 1,
    diameter_mm: float | None = None,
    seed: int = 0,
    generator: str = "texture",
    device: str | None = None,
) -> None:
    """Plant tumors into one CT and write OUTPUT/CASE_0000.nii.gz, OUTPUT/CASE.nii.gz and OUTPUT/CASE.json.

    `host` may be left out for lung priors: the lung is then found as air inside the body. If the host is too small for
    any lesion, that is reported and the case is written unchanged. `generator` is texture, auto, the name of an
    installed or bundled generator, or a file.

    Raises:
        ValueError: an input, a setting or the output folder cannot work; nothing is written then.
    """
    hosts = (host,) if isinstance(host, int) else tuple(host or ())
    target = make_target(_prior(prior, diameter_mm), hosts, tumor)
    section = _section(target, generator, seed, lesions)
    chosen = choose_device(device)
    choices = choice.choose_generators(section, {}, configuration="", fold=None, validation_cases=[])
    (renderer,) = choice.build_generators(choices, section, SLICE_AXIS, chosen)
    folder = cases.check_writable(output)
    name = case_name(Path(image))
    paths = folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz"
    _check_inputs_stay((image, label), paths)
    ct, labels = cases.read_case(image), cases.read_label(label)
    cases.check_same_geometry(ct, labels)
    if note := real_tumor_note(labels, tumor):
        print(f"Warning: {note}")
    if choices[0].path is not None:
        print(*choice.choice_lines(choices), sep="\n")
    planting = plant(ct, labels, section, lesions, chosen, renderer)
    record = {
        "version": __version__,
        "seed": seed,
        "generator": choices[0].generator,
        "prior": prior,
        "inputs": {"image": Path(image).name, "label": Path(label).name, "host": list(hosts), "tumor": tumor},
        "requested": {"lesions": lesions, "diameter_mm": diameter_mm},
        "lesions": [describe_lesion(lesion, ct) for lesion in planting.lesions],
    }
    with cases.replacing_all(folder) as unfinished:
        cases.write_case(planting.image, unfinished / paths[0].name)
        cases.write_case(planting.label, unfinished / paths[1].name)
        cases.write_json(record, unfinished / f"{name}.json")
    _report(planting, record, (*paths, folder / f"{name}.json"))


def _prior(name: str, diameter_mm: float | None) -> Prior:
    prior = priors.load(name)
    if diameter_mm is None:
        return dataclasses.replace(prior, lesions_per_patch=(1.0,))
    if not (math.isfinite(diameter_mm) and diameter_mm > 0):
        raise ValueError(f"--diameter-mm must be a length above 0 mm, but it is {diameter_mm}.")
    size = SizeClass(distribution="log_uniform", weight=1.0, min_mm=diameter_mm * 0.9999, max_mm=diameter_mm * 1.0001)
    return dataclasses.replace(prior, lesions_per_patch=(1.0,), sizes=(size,))


def make_target(prior: Prior, hosts: tuple[int, ...], tumor: int) -> Target:
    """Return the target of a prior; a lung may be without a label.

    Raises:
        ValueError: there is no host, or the tumor's label is one of its.
    """
    if not hosts and prior.name not in _LUNG_PRIORS:
        raise ValueError(
            f"--host is missing: with the prior '{prior.name}', give the label of the organ, such as --host 1."
        )
    if tumor <= 0 or tumor in hosts:
        raise ValueError(f"--tumor must be a label above 0 and none of --host {list(hosts)}, but it is {tumor}.")
    return Target(
        name=prior.name,
        tumor_label=tumor,
        lesion_labels=(tumor,),
        prior=prior,
        source=f"bundled prior '{prior.name}'",
        host_labels=hosts,
        host_hu=None if hosts else LUNG_HU,
    )


def _section(target: Target, generator: str, seed: int, lesions: int) -> Section:
    if lesions < 1:
        raise ValueError(f"-n must be 1 or more, but it is {lesions}.")
    section = Section(targets=(target,), labels={}, plans_hash="", generator=generator, seed=seed, min_visibility=0.0)
    return always_planting(section)  # even lesions that are hard to see are planted as asked


def _check_inputs_stay(inputs: tuple[str | Path, ...], outputs: tuple[Path, ...]) -> None:
    taken = {Path(path).resolve() for path in inputs} & {path.resolve() for path in outputs}
    if taken:
        raise ValueError(f"The result would overwrite the input {taken.pop()}. Choose another folder with -o.")


def _report(planting: Planting, record: dict[str, Any], paths: Sequence[Path]) -> None:
    wanted, lesions = record["requested"]["lesions"], record["lesions"]
    print(f"Planted {len(lesions)} of {wanted} lesion(s).{planting.shortfall and ' ' + planting.shortfall}")
    for lesion in lesions:
        x, y, z = lesion["center_mm"]
        position = f"at x {x:.1f}, y {y:.1f}, z {z:.1f} mm"
        print(f"  {lesion['diameter_mm']:.1f} mm, {lesion['contrast_hu']:+.0f} HU against the host, {position}")
    for path in paths:
        print(path)
