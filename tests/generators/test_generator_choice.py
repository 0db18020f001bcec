"""Which generator runs: what `auto` takes in which order, what is refused, and what the log says."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from generator_examples import ISOTROPIC, lite, make_card
from synthesis_examples import PRIOR, make_section

from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION as BENCH_CONFIGURATION
from nnunetv2_freetumor.experiments.bench.data import DATASET
from nnunetv2_freetumor.experiments.bench.data import PLANS as PLANS_NAME
from nnunetv2_freetumor.files.checkpoints import CHECKPOINT
from nnunetv2_freetumor.generators import weights
from nnunetv2_freetumor.generators.choice import ASKED_FOR, Choice, build_generators, choice_lines, choose_generators
from nnunetv2_freetumor.generators.networks import FreeTumorNet
from nnunetv2_freetumor.generators.weights import save_generator
from nnunetv2_freetumor.offline import preview
from nnunetv2_freetumor.plan import SECTION, read_section
from nnunetv2_freetumor.synthesis.texture import TextureGenerator
from nnunetv2_freetumor.trainer import nnUNetTrainerFreeTumor

pytest_plugins = ["tiny_trainings"]

PLANS = {"dataset_name": "Dataset007_Liver", "plans_name": "nnUNetPlans"}
CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainerFreeTumorGenerator"
CPU = torch.device("cpu")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Give an empty results folder, and no bundled generators."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr(weights, "bundled_folder", lambda: tmp_path / "bundled")
    return tmp_path / "results"


def save(path, **card):
    """Write a lite generator for the liver."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_generator(lite(), make_card(**{"name": path.stem, **card}), path)
    return path


def trained(results, fold=0, trainer=TRAINER, plans="nnUNetPlans", configuration=CONFIGURATION, age=0, **card):
    """Write the generator of a fold, as the generator's trainer leaves it."""
    folder = results / PLANS["dataset_name"] / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"
    path = save(folder / "generator.safetensors", name=f"own_{fold}", dataset=PLANS["dataset_name"], **card)
    os.utime(path, (1e9 - age, 1e9 - age))
    (folder / CHECKPOINT).touch()
    return path


def install(results, name, **card):
    """Write an installed generator."""
    return save(results / "freetumor_generators" / f"{name}.safetensors", **card)


def section(generator="auto", host="liver"):
    """Give a section with one target."""
    return make_section(prior=dataclasses.replace(PRIOR, name=host), generator=generator)


def choose(generator="auto", fold=0, host="liver", validation=("val_1", "val_2"), plans=PLANS):
    """Choose for the section's only target."""
    (choice,) = choose_generators(section(generator, host), plans, CONFIGURATION, fold, list(validation))
    return choice


def test_texture_runs_where_it_is_asked_for_and_needs_no_file(monkeypatch):
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert choose("texture") == Choice("organ", "texture", None, ASKED_FOR)
    assert choice_lines([choose("texture")]) == ["FreeTumor: organ: generator texture, requested by name"]


def test_auto_takes_texture_where_there_is_nothing_else_and_says_so(results):
    assert choose() == Choice(
        "organ",
        "texture",
        None,
        "no generator was trained for this dataset and fold, and no installed one was trained on real tumors of the "
        "host 'liver'",
    )


def test_auto_without_a_results_folder_says_why_nothing_was_found(results, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    assert choose().reason.endswith("and installed ones cannot be found because nnUNet_results is not set")


def test_auto_takes_this_folds_own_generator_first(results):
    install(results, "other", real_tumors=("liver",))
    path = trained(results)
    choice = choose()
    assert (choice.generator, choice.path) == ("own_0", path)
    assert choice.reason == f"trained for Dataset007_Liver, nnUNetPlans, 3d_fullres, fold 0, by {TRAINER}"
    assert choice_lines([choice]) == [f"FreeTumor: organ: generator own_0 ({path}), {choice.reason}"]


@pytest.mark.parametrize(
    "other", [{"fold": 1}, {"trainer": f"{TRAINER}Mine"}, {"trainer": f"{TRAINER}Mine", "plans": "otherPlans"}]
)
def test_another_fold_s_or_trainers_generator_is_not_taken(results, other):
    trained(results, **other)
    assert choose().generator == "texture"


@pytest.mark.parametrize("other", [{"plans": "otherPlans"}, {"configuration": "3d_lowres"}])
def test_of_other_plans_or_configurations_a_generator_is_taken_where_these_have_none(results, other):
    path = trained(results, **other, age=-50)
    choice = choose()
    assert choice.path == path and choice.reason.startswith(
        "trained for Dataset007_Liver, "
        + ", ".join([other.get("plans", "nnUNetPlans"), other.get("configuration", "3d_fullres"), "fold 0"])
    )
    trained(results, **other, training_cases=("val_1",))
    with pytest.raises(ValueError, match="was trained on 1 of the 2 validation cases of fold 0"):
        choose()
    trained(results, **other, age=-50)
    own = trained(results)
    assert choose().path == own
    (own.parent / CHECKPOINT).unlink()
    assert choose().path == path, "finished with other plans comes before unfinished with these"


def test_a_generator_of_a_training_that_began_anew_is_passed_over(results):
    path = trained(results)
    os.utime(path.parent / CHECKPOINT, (1e9 - 3600, 1e9 - 3600))
    assert choose().path is None and "whose training has not finished" in choose().reason


def test_of_the_length_variants_the_plain_class_comes_first_then_the_newest(results):
    trained(results, trainer=f"{TRAINER}_5epochs", age=0)
    newer = trained(results, trainer=f"{TRAINER}_1epoch", age=-50)
    assert choose().path == newer
    plain = trained(results, age=100)
    assert choose().path == plain


def test_without_a_fold_the_newest_of_all_folds_is_taken_and_named(results):
    trained(results, fold=0)
    newest = trained(results, fold=2, age=-50, training_cases=("val_1",))
    choice = choose(fold=None)
    assert choice.path == newest and choice.reason.startswith("the newest of all folds, trained for ")
    assert "fold 2" in choice.reason


def test_a_generator_whose_training_has_not_ended_is_passed_over_and_named(results):
    path = trained(results)
    (path.parent / CHECKPOINT).unlink()
    (choice,) = choose_generators(section(), PLANS, CONFIGURATION, 0, [])
    assert choice.path is None
    assert choice.reason.startswith("no generator was trained for this dataset and fold, and no installed one")
    assert choice.reason.endswith(f"; skipped {path}, whose training has not finished")
    installed = install(results, "theirs", real_tumors=("liver",))
    (choice,) = choose_generators(section(), PLANS, CONFIGURATION, 0, [])
    assert choice.path == installed and f"; skipped {path}, whose" in choice.reason
    assert choose_generators(section(str(path)), PLANS, CONFIGURATION, 0, [])[0].path == path
    (path.parent / CHECKPOINT).touch()
    assert choose_generators(section(), PLANS, CONFIGURATION, 0, [])[0].path == path


def test_fold_all_has_a_generator_of_its_own_and_may_share_cases(results):
    trained(results, fold=0)
    path = trained(results, fold="all", training_cases=("val_1",))
    assert choose(fold="all").path == path


def test_auto_takes_the_newest_installed_one_that_saw_real_tumors_of_the_host(results):
    install(results, "older", real_tumors=("liver",), date="2025-01-01")
    path = install(results, "newer", real_tumors=("liver",), date="2025-06-01")
    install(results, "phantoms", date="2025-09-01")
    install(results, "elsewhere", hosts=("kidney",), real_tumors=("kidney",), date="2025-09-01")
    install(results, "cannot_serve", hosts=("kidney",), real_tumors=("liver",), date="2025-09-01")
    choice = choose()
    assert choice.path == path
    assert choice.reason == (
        "installed, and trained on real tumors of the host 'liver'; also installed, but older: older"
    )


def test_one_trained_on_phantoms_runs_by_name_only(results, tmp_path):
    path = install(results, "phantoms")
    bundled = save(tmp_path / "bundled" / "lite_phantom.safetensors")
    assert choose().generator == "texture"
    assert choose("phantoms") == Choice("organ", "phantoms", path, ASKED_FOR)
    assert choose("lite_phantom").path == bundled
    assert choose(str(path)).path == path


def test_an_installed_file_that_cannot_be_read_is_named(results):
    folder = results / "freetumor_generators"
    folder.mkdir(parents=True)
    (folder / "broken.safetensors").write_bytes(b"nothing")
    assert choose().reason.endswith("real tumors of the host 'liver' (unreadable: broken.safetensors)")


def test_an_own_generator_that_does_not_serve_the_host_is_named(results):
    path = trained(results, hosts=("kidney",))
    assert choose().reason.startswith(
        f"the one trained for this dataset ({path}) supports only kidney, and no installed"
    )


def test_a_named_generator_for_other_hosts_is_refused(results):
    path = install(results, "renal", hosts=("kidney", "pancreas"))
    with pytest.raises(ValueError) as error:
        choose("renal")
    assert str(error.value) == (
        f"The generator 'renal' ({path}) supports the hosts kidney, pancreas, but the target 'organ' needs 'liver'. "
        "Set 'generator' to auto, to texture, or to one that supports this host ('nnUNetv2_freetumor generator list' "
        "shows them)."
    )


def test_an_unknown_name_ends_with_what_there_is(results):
    install(results, "known")
    with pytest.raises(ValueError, match="no generator named 'unknown'.* known.* may also be auto or texture"):
        choose("unknown")


@pytest.mark.parametrize("generator", ["auto", "shared"])
def test_on_a_numbered_fold_a_generator_that_saw_a_validation_case_is_refused(results, generator):
    card = {"dataset": "Dataset007_Liver", "training_cases": ("val_2", "train_1"), "real_tumors": ("liver",)}
    path = install(results, "shared", **card)
    with pytest.raises(ValueError) as error:
        choose(generator)
    assert str(error.value) == (
        f"The generator 'shared' ({path}) was trained on 1 of the 2 validation cases of fold 0 (val_2), so this "
        "fold's scores would be too optimistic. Train a generator for this fold with 'nnUNetv2_train Dataset007_Liver "
        "3d_fullres 0 -tr nnUNetTrainerFreeTumorGenerator -p nnUNetPlans', set 'generator' to texture in the plans' "
        "freetumor section, or train fold all."
    )
    assert choose(generator, fold="all").path == choose(generator, fold=None).path == path
    assert choose(generator, validation=("val_1",)).path == path


def test_this_folds_own_generator_is_refused_too_when_its_cards_cases_are_validation_cases(results):
    trained(results, training_cases=("val_1", "val_2"))
    with pytest.raises(ValueError, match=r"'own_0' .* 2 of the 2 validation cases of fold 0 \(val_1, val_2\)"):
        choose()


def test_cases_of_another_dataset_with_the_same_names_do_not_count(results):
    card = {"dataset": "Dataset008_Other", "training_cases": ("val_1",), "real_tumors": ("liver",)}
    assert choose_generators(section(), PLANS, CONFIGURATION, 0, ["val_1"])[0].generator == "texture"
    assert choose(str(install(results, "other", **card))).generator == "other"


def test_each_target_gets_its_own_generator_and_a_shared_file_is_loaded_once(results, monkeypatch):
    card = make_card("freetumor", name="abdomen", hosts=("liver", "pancreas"), real_tumors=("liver", "pancreas"))
    path = results / "freetumor_generators" / "abdomen.safetensors"
    path.parent.mkdir(parents=True)
    save_generator(FreeTumorNet(2), dataclasses.replace(card, spacing_mm=(1.5, 1.5, 3.0)), path)
    target = section().targets[0]
    hosts = ("pancreas", "kidney", "liver")
    targets = [dataclasses.replace(target, name=host, prior=dataclasses.replace(PRIOR, name=host)) for host in hosts]
    three = dataclasses.replace(section(), targets=tuple(targets))
    choices = choose_generators(three, PLANS, CONFIGURATION, 0, [])
    assert [choice.generator for choice in choices] == ["abdomen", "texture", "abdomen"]
    pancreas, kidney, liver = build_generators(choices, three, 1, CPU)
    assert isinstance(kidney, TextureGenerator)
    assert (pancreas.channel, liver.channel) == (1, 0) and pancreas.network is liver.network
    assert pancreas.spacing_mm == (1.5, 3.0, 1.5)


def test_a_chosen_lite_generator_is_built_at_its_cards_spacing(results):
    path = install(results, "phantoms")
    chosen = section("phantoms")
    (built,) = build_generators(choose_generators(chosen, {}, "", None, []), chosen, 0, CPU)
    assert built.card.name == "phantoms" and built.spacing_mm == ISOTROPIC and path.is_file()
    assert not any(weight.requires_grad for weight in built.network.parameters())


@pytest.mark.parametrize("cases, refused", [((), False), (("case_000",), True)])
def test_the_trainer_draws_with_what_was_chosen_writes_it_to_the_log_and_refuses_its_validation_cases(
    make_trainer, tmp_path, monkeypatch, cases, refused
):
    made = make_trainer(nnUNetTrainerFreeTumor, judge="off")
    monkeypatch.setattr(made, "do_split", lambda: (["case_001"], ["case_000"]))
    path = install(tmp_path / "results", "ours", real_tumors=("liver",))
    save_generator(lite(), make_card(name="ours", real_tumors=("liver",), dataset=DATASET, training_cases=cases), path)
    chosen = read_section(made.plans_manager.plans[SECTION])
    if refused:
        with pytest.raises(ValueError, match="'ours' .* 1 of the 1 validation cases of fold 0"):
            made.make_synthesizer(chosen)
        return
    (built,) = made.make_synthesizer(chosen).generators
    assert built.card.name == "ours"
    assert f": generator ours ({path}), installed, and trained on real tumors" in Path(made.log_file).read_text()


def test_the_preview_draws_with_this_datasets_own_generator_and_says_of_which_fold(
    tiny_dataset, make_trainer, tmp_path, monkeypatch, capsys
):
    make_trainer(nnUNetTrainerFreeTumor)  # sets nnU-Net's folders
    folder = tmp_path / "results" / DATASET / f"{TRAINER}__{PLANS_NAME}__{BENCH_CONFIGURATION}" / "fold_3"
    save(folder / "generator.safetensors", name="mine")
    (folder / CHECKPOINT).touch()
    titles = []
    monkeypatch.setattr(preview, "lesion_sheet", lambda pictures, path, title: titles.append(title))
    preview.preview_command(DATASET, tmp_path / "out", count=1)
    out = capsys.readouterr().out
    assert "generator mine (" in out and "the newest of all folds, trained for" in out and "fold 3" in out
    assert ", mine, seed 0" in titles[0]
