"""Types whose field names are a file format: their names and order are frozen here.

Files written under these names must stay readable: rename a field only together with a reader for the former name.
"""

import ast
import dataclasses
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nnunetv2_freetumor"
MARK = "Field names are a file format:"
FIELDS = {
    "cluster.reports:CaseReport": "case state reason counts",
    "evaluation.scores:Rule": "min_iou bounds_mm tolerance_mm min_voxels",
    "evaluation.scores:ReferenceLesion": (
        "number center diameter_mm volume_ml found iou dice covered surface_distance_mm"
    ),
    "evaluation.scores:PredictedLesion": "number center diameter_mm volume_ml kind probability in_host",
    "evaluation.scores:Sweep": "found false_positives false_positives_in_host",
    "evaluation.scores:CaseScore": (
        "case patient pair dice surface_dice host_dice lesions predictions probability sweep"
    ),
    "evaluation.scores:Estimate": "value low high count",
    "evaluation.scores:Difference": "value low high p count",
    "evaluation.scores:FrocPoint": "threshold false_positives_per_scan sensitivity",
    "evaluation.scores:Summary": (
        "pair cases tumor_free_cases lesions sensitivity false_positives_per_scan false_positives_in_host "
        "false_positive_ml_per_scan patient_sensitivity patient_specificity auroc dice surface_dice host_dice "
        "froc"
    ),
    "experiments.bench.command:Spread": "low median high",
    "experiments.bench.command:Figures": (
        "plain_ms freetumor_ms iteration_ratio synthesis_ms_per_lesion augmentation_ms extra_memory_mib"
    ),
    "experiments.realism.classifier:Clue": "feature group importance auc ks shift_sd real_median planted_median",
    "experiments.realism.classifier:Realism": "name auc auc_linear by_group clues votes",
    "experiments.realism.lesions:Lesions": "features diameter_mm tiles_hu outlines side_mm",
    "experiments.study.design:Setting": "name cases label_free",
    "experiments.study.design:FoldCases": "fold setting seed training validation",
    "experiments.study.design:Budget": "epochs iterations recipe",
    "experiments.study.design:Assignment": "method budget runs foreground generator after_intensity judged",
    "experiments.study.results:Predicted": "sensitivity false_positives false_positives_in_host specificity dice",
    "generator_training.recipes:Recipe": (
        "kind adversarial epochs iterations_per_epoch generator_rate critic_rate betas decay_power "
        "lesions_per_step spacing_mm side_voxels chest_spacing_mm chest_side_voxels adversarial_weight "
        "judge_weight judge_warmup_epochs moment_weight band_weight residual_weight r1_weight r1_every ema_decay "
        "replay_windows divergence_steps validation_iterations preview_every"
    ),
    "generators.cards:Card": (
        "name kind hosts window_hu spacing_mm side_voxels sign activation recipe training_data dataset plans "
        "configuration fold training_cases real_tumors judge purpose not_seen license date version"
    ),
    "generators.choice:Choice": "target generator path reason",
    "offline.orders:Request": "per_case lesions seed generator device",
    "plan:SizeClass": "distribution weight min_mm max_mm ln_mm_mean ln_mm_sd",
    "plan:Shape": (
        "kind elongation_logit flatness_logit roughness roughness_at_mm roughness_ln_sd coarse_cells fine_cells "
        "fine_share lobe_odds"
    ),
    "plan:Texture": (
        "k_mean k_sd min_core_hu min_contrast_hu edge_depth_mm edge_depth_per_radius edge_scale_mm fine_hu "
        "fine_mm coarse_hu coarse_per_diameter rim_hu necrotic_share rim_enhancing_share part_solid_share "
        "ground_glass_share opacity"
    ),
    "plan:Prior": "name sizes lesions_per_patch shape texture exophytic_mm exophytic_per_diameter subpleural",
    "plan:Target": "name tumor_label lesion_labels prior source host_labels host_hu",
    "plan:Section": (
        "targets labels plans_hash version generator judge min_quality min_accepted_share min_judge_tumors recipe "
        "recipe_changes seed probability_tumor_free probability_tumor_bearing untouched_share "
        "tumor_free_patches_only min_visibility unlabeled_share clearance_mm fingerprint"
    ),
    "planning.measurement:Tumor": (
        "diameter_mm elongation_logit flatness_logit host_hu contrast_hu k edge_width_mm edge_depth_mm "
        "fine_inside_hu fine_beside_hu texture_mm"
    ),
    "planning.measurement:Host": "median_hu sd_hu low_hu",
    "pool.store:Record": "case source settings cleared content counts",
}


def marked():
    """Find the types whose docstring says that their field names are a file format."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and MARK in (ast.get_docstring(node) or ""):
                yield f"{module}:{node.name}"


def field_names(kind):
    """Return the names of a dataclass's or a named tuple's fields, in order."""
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(kind._fields)


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_names_of_a_file_format_stay_and_keep_their_order(name):
    module, kind = name.split(":")
    assert field_names(getattr(importlib.import_module(f"{PACKAGE.name}.{module}"), kind)) == FIELDS[name].split()


def test_every_type_of_the_table_says_so_in_its_docstring_and_no_other_does():
    assert sorted(marked()) == sorted(FIELDS)
