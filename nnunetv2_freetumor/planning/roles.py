"""Read from label names which label is an organ and which is its tumor, by one table of words.

A label with a lesion's word is a lesion; one with an organ's word and no other is that organ. A lesion that names an
organ belongs to it, one that does not belongs to every supported organ of the dataset: FLARE's 'tumor' beside 13 organs
is a target in liver, pancreas and kidney. What the table leaves open ends in an error with the lines that settle it.
"""

import re
from typing import Any, NamedTuple

from nnunetv2_freetumor import priors

ROLES = "freetumor_roles"  # key in the plans: roles that the user has written
LUNG_HU = (-950.0, -500.0)  # aerated lung; trachea and bowel gas lie near -1000 HU

ORGAN_WORDS = {
    "liver": {"liver", "hepatic", "hepar", "hcc"},
    "pancreas": {"pancreas", "pancreatic", "pdac"},
    "kidney": {"kidney", "renal", "rcc"},
    "lung": {"lung", "pulmonary", "nsclc"},
}
COVID = {"covid", "coronavirus", "infection", "infected", "pneumonia", "ggo", "glass", "opacity", "consolidation"}
TUMOR_WORDS = {
    *("tumor", "tumour", "cancer", "carcinoma", "adenocarcinoma", "metastasis", "met", "malignancy", "neoplasm"),
    *("gtv", "gtvp", "hcc", "pdac", "rcc", "nsclc"),
}
LESION_WORDS = TUMOR_WORDS | COVID | {"lesion", "nodule", "mass", "cyst"}
NO_TARGET = {"cyst", "benign"}  # lesions to keep away from, never tumors to plant
ELSEWHERE = {  # parts of the body that are no host, though their name may hold an organ's: 'hepatic vessel'
    *("vessel", "vein", "artery", "portal", "duct", "pelvis", "ureter", "airway", "trachea", "bronchus", "fissure"),
    *("thrombus", "hilum", "fat", "adrenal", "gland", "spleen", "splenic", "colon", "rectum", "colorectal", "bowel"),
    *("intestine", "duodenum", "stomach", "gastric", "esophagus", "oesophagus", "gallbladder", "bladder", "prostate"),
    *("uterus", "ovary", "breast", "thyroid", "brain", "head", "neck", "bone", "rib", "vertebra", "skin", "lymph"),
    *("node", "heart", "aorta", "pleura", "pleural", "muscle", "flexure"),
}
CHEST = ORGAN_WORDS["lung"] | COVID | {"chest", "thorax", "thoracic", "lidc", "luna", "nlst"}
SIDES = ("left", "right")
_SINGULAR = {"metastases": "metastasis", "masses": "mass", "bronchi": "bronchus", "glasses": "glass"}


class Role(NamedTuple):
    """One host and its tumor, as labels of a dataset."""

    name: str
    host_labels: tuple[int, ...]
    host_hu: tuple[float, float] | None  # instead of host labels
    tumor_label: int
    lesion_labels: tuple[int, ...]  # every tumor and cyst of the dataset: synthetic lesions keep away from them
    prior_name: str


class Label(NamedTuple):
    """One entry of dataset.json's labels: a label, or a region of several."""

    name: str
    words: frozenset[str]
    values: frozenset[int]


def resolve(dataset_json: dict[str, Any], dataset_name: str, given: list[Any] | None = None) -> list[Role]:
    """Find every host/tumor pair of a dataset.

    Args:
        given: the plans' `freetumor_roles` where the user has written them; they replace the table.

    Raises:
        ValueError: no pair, or more than one reading; the text shows the names and the lines to add to the plans file.
    """
    labels = read_labels(dataset_json["labels"])
    lesions = [label for label in labels if _is_lesion(label)]
    if given is not None:
        return _read_given(labels, lesions, given)
    roles = []
    for (host, prior_name, side), candidates in _candidates(labels, lesions, dataset_name).items():
        tumor = _choose(candidates, host, labels)
        roles.append(
            _role(prior_name, side, tumor=tumor, host=_find_host(labels, lesions, host, side), lesions=lesions)
        )
    if not roles:
        raise ValueError(
            _explain("dataset.json names no supported organ (liver, pancreas, kidney, lung) and tumor", labels)
        )
    return roles


def split_words(name: str) -> frozenset[str]:
    """Split a name at spaces, signs, digits and capitals, in lower case and singular."""
    words = set(re.findall(r"[A-Za-z]+", name)) | set(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name))
    words = {_singular(word.lower()) for word in words}
    if "lobe" in words and words & {"upper", "middle", "lower"}:  # lobes with these names exist in the lung only
        words.add("lung")
    return frozenset(words)


def read_labels(labels: dict[str, Any]) -> list[Label]:
    """Read dataset.json's labels, without background and ignore label."""
    found = []
    for name, value in labels.items():
        values = frozenset(map(int, value if isinstance(value, list | tuple) else [value])) - {0}
        if values and name not in ("background", "ignore"):
            found.append(Label(name, split_words(name), values))
    return found


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is", "as"))
    return _SINGULAR.get(word, word[:-1] if plural else word)


def _is_lesion(label: Label) -> bool:
    """Check whether a label is a lesion; KiTS' region 'kidney and masses' is named after its organ first."""
    around = "and" in label.words and any(label.words & names for names in ORGAN_WORDS.values())
    return bool(label.words & LESION_WORDS) and not around


def _values(labels: list[Label]) -> frozenset[int]:
    return frozenset[int]().union(*(label.values for label in labels))


def _find_host(labels: list[Label], lesions: list[Label], host: str, side: str = "") -> tuple[int, ...]:
    """Collect an organ's labels, on one side where that is named, less the lesions that its region may include."""
    organ = [
        item for item in labels if item not in lesions and item.words & ORGAN_WORDS[host] and not item.words & ELSEWHERE
    ]
    on_side = [label for label in organ if side in label.words]
    return tuple(sorted(_values(on_side or organ) - _values(lesions)))


def _candidates(
    labels: list[Label], lesions: list[Label], dataset_name: str
) -> dict[tuple[str, str, str], list[Label]]:
    """Group the lesion labels that may be a target by host, prior and, where the name tells it, side of the body."""
    present = [host for host in ORGAN_WORDS if _find_host(labels, lesions, host)]
    groups: dict[tuple[str, str, str], list[Label]] = {}
    for label in lesions:
        if label.words & (NO_TARGET | ELSEWHERE):
            continue
        side = next((side for side in SIDES if side in label.words), "")
        for host in _hosts_of(label, present, dataset_name):
            groups.setdefault((host, _prior_name(label, host, dataset_name), side), []).append(label)
    return groups


def _hosts_of(label: Label, present: list[str], dataset_name: str) -> list[str]:
    """List the hosts of a lesion label; the lung needs no label, for its air shows where it is."""
    if label.words & COVID:
        return ["lung"]
    if named := [host for host, names in ORGAN_WORDS.items() if label.words & names]:
        return [host for host in named if host in [*present, "lung"]]
    if not present and split_words(dataset_name) & CHEST:
        return ["lung"]
    return present


def _prior_name(label: Label, host: str, dataset_name: str) -> str:
    covid = label.words & COVID or split_words(dataset_name) & COVID
    return "covid19" if host == "lung" and covid and not label.words & TUMOR_WORDS else host


def _choose(candidates: list[Label], host: str, labels: list[Label]) -> int:
    """Choose the tumor label: one that names the organ, then one that says tumor, then the innermost region."""
    for better in (
        lambda label, _: label.words & ORGAN_WORDS[host],
        lambda label, _: label.words & TUMOR_WORDS,
        lambda label, _: "consolidation" not in label.words,
        lambda label, others: not any(other.values < label.values for other in others),
    ):
        candidates = [label for label in candidates if better(label, candidates)] or candidates
    values = _values(candidates)
    if len(values) > 1:
        named = " or ".join(f"'{label.name}'" for label in candidates)
        raise ValueError(_explain(f"Which label is the tumor of the {host} ({named}) is unclear", labels))
    return min(values)


def _role(prior: str, side: str, tumor: int, host: tuple[int, ...], lesions: list[Label]) -> Role:
    keep_away = tuple(sorted(_values(lesions) | {tumor}))
    return Role(
        f"{prior} {side}".strip(),
        host,
        host_hu=None if host else LUNG_HU,
        tumor_label=tumor,
        lesion_labels=keep_away,
        prior_name=prior,
    )


def _read_given(labels: list[Label], lesions: list[Label], given: list[Any]) -> list[Role]:
    """Read the roles that the user has written, and refuse what does not fit dataset.json."""
    roles: list[Role] = []
    for item in given:
        if not isinstance(item, dict) or not {"prior", "tumor"} <= set(item) <= {"prior", "tumor", "host"}:
            raise ValueError(_explain(f"The plans' {ROLES} hold {item!r}, which is not of the form below", labels))
        priors.load(item["prior"])
        hosts = item.get("host", [])
        hosts = [hosts] if isinstance(hosts, str) else hosts
        tumor, host = _named(labels, [item["tumor"]]), _named(labels, hosts)
        others = [label for label in lesions if label.name not in hosts]
        host -= tumor | _values(others)
        if len(tumor) != 1 or not (host or (item["prior"] in ("lung", "covid19") and not hosts)):
            raise ValueError(_explain(f"The plans' {ROLES} need a tumor of one label and a host", labels))
        role = _role(item["prior"], "", tumor=min(tumor), host=tuple(sorted(host)), lesions=others)
        repeated = sum(role.prior_name == other.prior_name for other in roles)
        roles.append(role._replace(name=f"{role.name} {repeated + 1}" if repeated else role.name))
    return roles


def _named(labels: list[Label], names: list[str]) -> frozenset[int]:
    chosen = [label for label in labels if label.name in names]
    if len(chosen) < len(names):
        raise ValueError(_explain(f"The plans' {ROLES} name {', '.join(map(repr, names))}", labels))
    return _values(chosen)


def _explain(problem: str, labels: list[Label]) -> str:
    names = ", ".join(f"'{label.name}'" for label in labels)
    return (
        f"{problem}. The labels are {names}. Assign them with a line like this at the top level of the plans file "
        f"(nnUNetPlans.json), one entry for each pair:\n"
        f'  "{ROLES}": [{{"prior": "liver", "host": ["LIVER LABEL"], "tumor": "TUMOR LABEL"}}],\n'
        f"with a prior of {', '.join(priors.names())}; 'host' may be omitted for the lung."
    )
