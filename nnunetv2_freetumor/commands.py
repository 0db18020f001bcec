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


DATASET = Option("-d", "dataset", "dataset number or name", required=True)
CONFIGURATION = Option("-c", "configuration", "nnU-Net configuration (default: 3d_fullres)")
PLANS = Option("-p", "plans_name", "name of the plans (default: nnUNetPlans)")
DEVICE = Option("-device", "device", "cpu or cuda (default: cuda where there is one)")
SEED = Option("--seed", "seed", "seed of all chance (default: 0)", int)
SCHEDULER = Option("--scheduler", "scheduler", "address or scheduler file of a running dask cluster")
WORKERS = Option("--workers", "workers", "number of processes on this machine (default: one per CPU core)", int)

COMMANDS = {
    "plan": Command(
        "planning.section:plan_command",
        "derive the freetumor section from the dataset and write it into the plans",
        (DATASET, PLANS, Option("--widen-window", "widen", "widen the clip window where it would hide tumors", bool)),
    ),
    "preview": Command(
        "offline.preview:preview_command",
        "draw before/after/mask pictures from the preprocessed training cases",
        (
            DATASET,
            CONFIGURATION,
            PLANS,
            Option("-o", "output", "folder for the pictures", required=True),
            Option("-n", "count", "number of lesions (default: 6)", int),
            SEED,
        ),
    ),
    "synthesize": Command(
        "offline.one_case:synthesize_case",
        "plant tumors into one raw CT case, without any nnU-Net dataset",
        (
            Option("-i", "image", "CT image in HU, such as .nii.gz", required=True),
            Option("-l", "label", "label map of the same geometry", required=True),
            Option("-o", "output", "folder for the new image, label map and record", required=True),
            Option("--prior", "prior", "bundled prior: liver, pancreas, kidney, lung ...", required=True),
            Option(
                "--host", "host", "labels of the host organ; may be left out for lungs without a label", int, many=True
            ),
            Option("--tumor", "tumor", "label that the planted tumors get", int, required=True),
            Option("-n", "lesions", "number of lesions (default: 1)", int),
            Option("--diameter-mm", "diameter_mm", "diameter of each lesion (default: drawn from the prior)", float),
            SEED,
            Option("--generator", "generator", "texture, auto, or the name or file of a generator (default: texture)"),
            DEVICE,
        ),
    ),
    "synthesize-dataset": Command(
        "offline.dataset:synthesize_dataset",
        "write a raw dataset of cases with planted tumors, each with its provenance",
        (
            Option("-o", "output", "folder of the new dataset, such as $nnUNet_raw/Dataset901_Planted", required=True),
            Option("-d", "dataset", "dataset number or name to plant into; its real cases are copied along"),
            Option("-i", "images", "or: folder of CT images in HU"),
            Option("-l", "hosts", "with -i: folder of host masks of the same names"),
            Option("-n", "per_case", "synthetic cases from each source (default: 1)", int),
            Option("--lesions", "lesions", "lesions of each synthetic case (drawn from the prior otherwise)", int),
            Option("--prior", "prior", "with -i: bundled prior: liver, pancreas, kidney, lung ..."),
            Option("--host", "host", "with -i: labels of the host organ in the masks", int, many=True),
            Option("--tumor", "tumor", "with -i: label that the planted tumors get", int),
            PLANS,
            SEED,
            Option("--generator", "generator", "texture, auto, or the name or file of a generator (default: texture)"),
            Option("--remake", "remake", "make one case again: its provenance file"),
            SCHEDULER,
            WORKERS,
            Option("-device", "device", "cpu or cuda (default: cpu); their voxels differ in the last bits"),
        ),
    ),
    "evaluate": Command(
        "evaluation.command:evaluate_command",
        "score predictions lesion by lesion: found by size, false positives, intervals, comparison, page",
        (
            Option("-ref", "references", "folder with reference label maps", required=True),
            Option("-pred", "predictions", "folder with predicted label maps, and CASE.npz for FROC", required=True),
            Option("-djfile", "dataset_json", "dataset.json of the dataset", required=True),
            Option("-pfile", "plans_file", "plans.json, for the tumors and hosts of its freetumor section"),
            Option("-vs", "other", "folder with another model's predictions of the same cases"),
            Option("-external", "external", "two folders, LABELS PREDICTIONS, of an external test set", many=True),
            Option("-o", "output", "output folder (freetumor_evaluation inside -pred otherwise)"),
            Option("-images", "images", "folder with the images CASE_0000, for pictures on CT"),
            Option("--patients", "patients", "JSON file {case: patient} (each case is a patient otherwise)"),
            Option("--bounds-mm", "bounds_mm", "bounds of the diameters (10 20 50 otherwise)", float, many=True),
            Option("--tolerance-mm", "tolerance_mm", "of the surface Dice (default: 2.0)", float),
            Option("--min-iou", "min_iou", "overlap from which a lesion is found (default: 0.1)", float),
            Option("--min-voxels", "min_voxels", "smaller components are left out (default: 1)", int),
            Option("-np", "processes", "number of processes (as for nnU-Net otherwise)", int),
            Option("--chill", "chill", "score what has a prediction, where some cases have none", bool),
            SEED,
        ),
    ),
    "generator convert": Command(
        "generators.conversion:convert_command",
        "turn the authors' published checkpoint into a generator file with a card",
        (
            Option("OFFICIAL.pt", "checkpoint", "the authors' checkpoint; nothing in it is executed", required=True),
            Option("-o", "output", "generator file to write, FILE.safetensors", required=True),
            Option("--region", "region", "abdomen or chest (what the number of output channels says otherwise)"),
            Option("--host", "host", "of a chest checkpoint: lung or covid19 (lung otherwise)"),
            Option("--name", "name", "of the generator (freetumor_abdomen, _lung or _covid19 otherwise)"),
        ),
    ),
    "generator list": Command("generators.install:list_command", "list the bundled and the installed generators"),
    "generator inspect": Command(
        "generators.install:inspect_command",
        "check a generator file completely and print its card",
        (Option("FILE", "file", "generator file, or name of an installed or bundled one", required=True),),
    ),
    "generator install": Command(
        "generators.install:install_command",
        "check a generator file completely and install it, so that plans can name it",
        (
            Option("FILE", "file", "generator file", required=True),
            Option("--name", "name", "name to install it under (its card's otherwise)"),
        ),
    ),
    "realism": Command(
        "experiments.realism.command:realism_command",
        "let a classifier tell real lesions from synthetic ones: AUC by generator, and what gives them away",
        (
            Option("-o", "output", "folder for everything; give it again to go on", required=True),
            Option("-i", "images", "folder with CT images CASE_0000 (default: phantoms of a held-out growth family)"),
            Option("-l", "labels", "folder with their label maps"),
            Option("--host", "host", "labels of the host organ", int, many=True),
            Option("--tumor", "tumor", "label of the real tumors", int),
            Option("--prior", "prior", "bundled prior of the synthetic lesions (default: liver)"),
            Option("--generators", "generators", "names, files or freetumor_random (texture otherwise)", many=True),
            Option("--cases", "cases", "number of cases (default: 24 phantoms, or all images)", int),
            Option("--patients", "patients", "JSON file {case: patient} (each case is a patient otherwise)"),
            Option("--controls", "controls", "also real against real and constant contrast", bool),
            Option("-np", "processes", "number of processes (default: 1)", int),
            SEED,
            DEVICE,
        ),
    ),
    "add-unlabeled": Command(
        "pool.command:add_unlabeled_command",
        "add CT without labels to a dataset's pool for training, or mark suspects in the pool",
        (
            DATASET,
            Option("-i", "images", "CT to add: one file, or a folder with files or DICOM series"),
            Option(
                "--hosts", "hosts", "folder with host masks, as CASE.nii.gz or as CASE/ORGAN.nii.gz (TotalSegmentator)"
            ),
            Option(
                "--host-model",
                "host_model",
                "instead of --hosts: folder of a trained nnU-Net model that segments the hosts",
            ),
            Option("--name-map", "name_map", "JSON file {mask name or value: label of the dataset}"),
            Option("--annotates", "annotates", "labels that the masks show wherever they are in view", many=True),
            Option("--tumor-free", "tumor_free", "you assert that no host in these scans has a tumor or cyst", bool),
            Option(
                "--judge",
                "judge",
                "folder of a trained model; the lesions that it finds are taken out of the new cases",
            ),
            Option(
                "--mark-suspects", "mark_suspects", "instead of -i: like --judge, for the cases already in the pool"
            ),
            CONFIGURATION,
            PLANS,
            SCHEDULER,
            WORKERS,
            DEVICE,
        ),
    ),
    "doctor": Command(
        "doctor:doctor_command",
        "check the installation and say how to mend what is wrong",
        (Option("-d", "dataset", "also check this dataset's section and clip window"), PLANS),
    ),
    "trainer-path": Command("cli:print_trainer_path", "print the folder for nnU-Net's nnUNet_extTrainer"),
    "demo": Command(
        "experiments.demo.command:demo_command",
        "run the whole line on a made-up CT cohort and write a report",
        (Option("-o", "output", "folder for everything the demo makes", required=True), DEVICE),
    ),
    "study": Command(
        "experiments.study.command:study_command",
        "compare training with and without synthetic tumors: arms x few-label settings x seeds",
        (
            Option("-o", "output", "folder of the study; give it again to go on", required=True),
            Option("-d", "dataset", "prepared dataset with imagesTs and labelsTs (default: a cohort of CT phantoms)"),
            CONFIGURATION,
            PLANS,
            Option("--labeled", "labeled", "numbers of labeled training cases (default: 4 8 16)", int, many=True),
            Option(
                "--label-free-cases", "label_free_cases", "cases of the label-free setting; 0: none (default: 6)", int
            ),
            Option("--seeds", "seeds", "repetitions of everything (default: 3)", int),
            Option("--epochs", "epochs", "of each training (default: 60 for phantoms, 100 for a dataset)", int),
            Option("--iterations", "iterations", "of each epoch (default: 25 for phantoms, 250 for a dataset)", int),
            Option("--arms", "arms", "which arms to run (default: all but the ablation's)", many=True),
            Option("--ablation", "ablation", "change one factor of the texture arm at a time instead", bool),
            Option("--hours", "hours", "start no training that would likely end later", float),
            Option("--jobs", "jobs", "trainings at a time (default: 1)", int),
            DEVICE,
        ),
    ),
    "bench": Command(
        "experiments.bench.command:bench_command",
        "measure what synthesis costs beside plain nnU-Net",
        (Option("-o", "output", "folder for the benchmark's data and results", required=True), DEVICE),
    ),
}

GROUPS = {"generator": "convert, list, inspect and install generator files"}  # first words of two-word commands
