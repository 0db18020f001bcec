"""The table of commands: the function behind each, and its options.

Options that are not given are not passed on, so every default stands in one place: the function's signature.
"""

from typing import NamedTuple


class Option(NamedTuple):
    """One option of a command: its flag, the keyword it fills, and what argparse needs to know.

    A flag without a dash is what help calls an argument that is given by its position.
    """

    flag: str
    keyword: str
    help: str
    kind: type = str
    required: bool = False
    many: bool = False


class Command(NamedTuple):
    """One command: the function that does it, as 'module:function', and its options."""

    target: str
    help: str
    options: tuple[Option, ...] = ()


_DATASET = Option("-d", "dataset", "dataset number or name", required=True)
_CONFIGURATION = Option("-c", "configuration", "nnU-Net configuration (default: 3d_fullres)")
_PLANS = Option("-p", "plans_name", "name of the plans (default: nnUNetPlans)")
DEVICE = Option("-device", "device", "cpu or cuda (default: cuda if available)")
SEED = Option("--seed", "seed", "random seed (default: 0)", int)
SCHEDULER = Option("--scheduler", "scheduler", "address or scheduler file of a running dask cluster")
WORKERS = Option("--workers", "workers", "number of processes on this machine (default: one per CPU core)", int)

COMMANDS = {
    "plan": Command(
        "planning.section:plan_command",
        "derive the freetumor section from the dataset and write it into the plans",
        (
            _DATASET,
            _PLANS,
            Option("--widen-window", "widen", "widen a clip window that hides tumors, even after preprocessing", bool),
        ),
    ),
    "preview": Command(
        "offline.preview:preview_command",
        "plot before/after/mask pictures of lesions planted into preprocessed training cases",
        (
            _DATASET,
            _CONFIGURATION,
            _PLANS,
            Option("-o", "output", "folder for the pictures", required=True),
            Option("-n", "count", "number of lesions (default: 6)", int),
            SEED,
        ),
    ),
    "synthesize": Command(
        "offline.one_case:synthesize_case",
        "plant tumors into one raw CT case; no nnU-Net dataset needed",
        (
            Option("-i", "image", "CT image in HU, such as .nii.gz", required=True),
            Option("-l", "label", "label map with the same geometry", required=True),
            Option("-o", "output", "folder for the new image, label map and record", required=True),
            Option("--prior", "prior", "bundled prior: liver, pancreas, kidney, lung ...", required=True),
            Option("--host", "host", "labels of the host; optional for lungs (default: found by HU)", int, many=True),
            Option("--tumor", "tumor", "label of the planted tumors", int, required=True),
            Option("-n", "lesions", "number of lesions (default: 1)", int),
            Option("--diameter-mm", "diameter_mm", "diameter of each lesion (default: drawn from the prior)", float),
            SEED,
            Option("--generator", "generator", "texture, auto, or name or file of a generator (default: texture)"),
            DEVICE,
        ),
    ),
    "synthesize-dataset": Command(
        "offline.dataset:synthesize_dataset",
        "write an nnU-Net raw dataset of cases with planted tumors, each with its provenance",
        (
            Option("-o", "output", "folder of the new dataset, such as $nnUNet_raw/Dataset901_Planted", required=True),
            Option("-d", "dataset", "number or name of the dataset to plant into; its real cases are copied along"),
            Option("-i", "images", "alternative to -d: folder of CT images in HU"),
            Option("-l", "hosts", "with -i: folder of host masks with the same names"),
            Option("-n", "per_case", "synthetic cases per source case (default: 1)", int),
            Option("--lesions", "lesions", "lesions per synthetic case (default: drawn from the prior)", int),
            Option("--prior", "prior", "with -i: bundled prior: liver, pancreas, kidney, lung ..."),
            Option("--host", "host", "with -i: labels of the host organ in the masks", int, many=True),
            Option("--tumor", "tumor", "with -i: label of the planted tumors", int),
            _PLANS,
            SEED,
            Option("--generator", "generator", "texture, auto, or name or file of a generator (default: texture)"),
            Option("--remake", "remake", "recreate a case from its provenance file"),
            SCHEDULER,
            WORKERS,
            Option("-device", "device", "cpu or cuda, whose voxels differ in the last bits (default: cpu)"),
        ),
    ),
    "evaluate": Command(
        "evaluation.command:evaluate_command",
        "score predictions lesion by lesion: sensitivity by size, false positives, intervals, comparison, page",
        (
            Option("-ref", "references", "folder with reference label maps", required=True),
            Option("-pred", "predictions", "folder with predicted label maps, and CASE.npz for FROC", required=True),
            Option("-djfile", "dataset_json", "dataset.json of the dataset", required=True),
            Option("-pfile", "plans_file", "plans.json with a freetumor section (default: roles from the label names)"),
            Option("-vs", "other", "folder with another model's predictions of the same cases, to compare with"),
            Option("-external", "external", "two folders, LABELS PREDICTIONS, of an external test set", many=True),
            Option("-o", "output", "output folder (default: freetumor_evaluation in -pred)"),
            Option("-images", "images", "folder with images CASE_0000, for pictures on CT (default: label maps only)"),
            Option("--patients", "patients", "JSON file {case: patient} (default: each case is a patient)"),
            Option("--bounds-mm", "bounds_mm", "bounds of the size classes (default: 10 20 50)", float, many=True),
            Option("--tolerance-mm", "tolerance_mm", "tolerance of the surface Dice (default: 2.0)", float),
            Option("--min-iou", "min_iou", "least IoU of a lesion that counts as found (default: 0.1)", float),
            Option("--min-voxels", "min_voxels", "ignore smaller components (default: 1)", int),
            Option("-np", "processes", "number of processes (default: nnUNet_def_n_proc, or 8)", int),
            Option("--chill", "chill", "score only cases that have a prediction", bool),
            SEED,
        ),
    ),
    "generator convert": Command(
        "generators.conversion:convert_command",
        "convert the authors' published checkpoint into a generator file with a card",
        (
            Option("OFFICIAL.pt", "checkpoint", "the authors' checkpoint; no code in it is executed", required=True),
            Option("-o", "output", "generator file to write, FILE.safetensors", required=True),
            Option("--region", "region", "abdomen or chest (default: from the number of output channels)"),
            Option(
                "--host", "host", "host of a chest checkpoint: lung or covid19 (default: lung; omit for the abdomen)"
            ),
            Option("--name", "name", "name of the generator (default: freetumor_abdomen, _lung or _covid19)"),
        ),
    ),
    "generator list": Command("generators.install:list_command", "list bundled and installed generators"),
    "generator inspect": Command(
        "generators.install:inspect_command",
        "fully check a generator file and print its card",
        (Option("FILE", "file", "generator file, or the name of an installed or bundled generator", required=True),),
    ),
    "generator install": Command(
        "generators.install:install_command",
        "fully check a generator file and install it for use by name",
        (
            Option("FILE", "file", "generator file", required=True),
            Option("--name", "name", "name to install it under (default: the name on its card)"),
        ),
    ),
    "realism": Command(
        "experiments.realism.command:realism_command",
        "train a classifier to tell real lesions from synthetic ones: AUC by generator, and what gives them away",
        (
            Option("-o", "output", "folder for everything; give it again to continue", required=True),
            Option("-i", "images", "folder with CT images CASE_0000 (default: phantoms of a held-out growth family)"),
            Option("-l", "labels", "folder with their label maps"),
            Option("--host", "host", "labels of the host organ", int, many=True),
            Option("--tumor", "tumor", "label of the real tumors", int),
            Option("--prior", "prior", "bundled prior, or plans file, of the synthetic lesions (default: liver)"),
            Option("--generators", "generators", "names, files or freetumor_random (default: texture)", many=True),
            Option("--cases", "cases", "number of cases (default: 24 phantoms, or all images)", int),
            Option("--patients", "patients", "JSON file {case: patient} (default: each case is a patient)"),
            Option("--controls", "controls", "add controls: real against real, and constant contrast", bool),
            Option("-np", "processes", "number of processes (default: 1)", int),
            SEED,
            DEVICE,
        ),
    ),
    "add-unlabeled": Command(
        "pool.command:add_unlabeled_command",
        "add CT without labels to a dataset's pool for training, or mark suspects in the pool",
        (
            _DATASET,
            Option("-i", "images", "CT to add: one file, or a folder with files or DICOM series"),
            Option(
                "--hosts", "hosts", "folder with host masks, as CASE.nii.gz or as CASE/ORGAN.nii.gz (TotalSegmentator)"
            ),
            Option("--host-model", "host_model", "instead of --hosts: folder of an nnU-Net model that segments them"),
            Option("--name-map", "name_map", "JSON file {mask name or value: label of the dataset}"),
            Option("--annotates", "annotates", "labels that the masks show wherever they are in view", many=True),
            Option("--tumor-free", "tumor_free", "you assert that no host in these scans has a tumor or cyst", bool),
            Option("--judge", "judge", "folder of a trained model; lesions that it finds are taken out of new cases"),
            Option(
                "--mark-suspects", "mark_suspects", "instead of -i: like --judge, for the cases already in the pool"
            ),
            _CONFIGURATION,
            _PLANS,
            SCHEDULER,
            WORKERS,
            DEVICE,
        ),
    ),
    "doctor": Command(
        "doctor:doctor_command",
        "check the installation and print how to fix what is wrong",
        (Option("-d", "dataset", "also check this dataset's freetumor section and clip window"), _PLANS),
    ),
    "trainer-path": Command("cli:print_trainer_path", "print the folder for nnU-Net's nnUNet_extTrainer"),
    "demo": Command(
        "experiments.demo.command:demo_command",
        "run the full pipeline on CT phantoms and write a report",
        (Option("-o", "output", "folder for everything that the demo writes", required=True), DEVICE),
    ),
    "study": Command(
        "experiments.study.command:study_command",
        "compare training with and without synthetic tumors: arms x few-label settings x seeds",
        (
            Option("-o", "output", "folder of the study; give it again to continue", required=True),
            Option("-d", "dataset", "prepared dataset with imagesTs and labelsTs (default: a cohort of CT phantoms)"),
            _CONFIGURATION,
            _PLANS,
            Option("--labeled", "labeled", "numbers of labeled training cases (default: 4 8 16)", int, many=True),
            Option("--label-free-cases", "label_free_cases", "label-free cases, 0 for none (default: 6)", int),
            Option("--seeds", "seeds", "random seeds, each a repetition of everything (default: 3)", int),
            Option("--epochs", "epochs", "epochs per training (default: 60 for phantoms, 100 for a dataset)", int),
            Option(
                "--iterations", "iterations", "iterations per epoch (default: 25 for phantoms, 250 for a dataset)", int
            ),
            Option("--arms", "arms", "which arms to run (default: all but the ablation's)", many=True),
            Option(
                "--ablation", "ablation", "run the texture arm and its variants, one factor changed at a time", bool
            ),
            Option("--hours", "hours", "start no training that would likely end later", float),
            Option("--jobs", "jobs", "trainings at a time (default: 1)", int),
            DEVICE,
        ),
    ),
    "bench": Command(
        "experiments.bench.command:bench_command",
        "measure what synthesis costs compared with plain nnU-Net",
        (Option("-o", "output", "folder for the benchmark's data and results", required=True), DEVICE),
    ),
}

GROUPS = {"generator": "convert, list, inspect and install generator files"}  # first words of two-word commands
