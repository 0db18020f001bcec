"""Whatever keeps validation from being scored, a training that took days does not end in it."""

import sys

from nnunetv2_freetumor.training import lesion_evaluation


def test_a_package_that_changed_while_the_training_ran_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nnunetv2_freetumor.evaluation.command", None)
    text = lesion_evaluation.evaluate_validation(tmp_path / "model" / "fold_0", tmp_path / "references")
    assert text.startswith("WARNING: FreeTumor: the validation predictions were not scored at lesion level:")
    assert "nnUNetv2_freetumor evaluate -ref" in text
