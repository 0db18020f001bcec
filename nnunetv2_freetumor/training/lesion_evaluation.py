"""Score nnU-Net's validation predictions lesion by lesion, once a training has ended, and never end it in an error."""

import shlex
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class LesionEvaluationMixin(nnUNetTrainer):
    """Score an nnU-Net trainer's validation predictions lesion by lesion, after nnU-Net's own scores."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Let nnU-Net predict and score the validation cases, then score their lesions beside its summary.json."""
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            references = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations"
            text = evaluate_validation(self.output_folder, references)
            self.print_to_log_file(text, also_print_to_console=False)


def evaluate_validation(fold: str | Path, references: str | Path) -> str:
    """Score a fold's validation folder, print the table beside nnU-Net's summary.json, and give the text.

    Days of training lie behind this: what cannot be scored is reported in the text, with the command to repeat it.
    """
    predictions, model = Path(fold) / "validation", Path(fold).parent
    dataset_json, plans_file = model / "dataset.json", model / "plans.json"
    try:
        from nnunetv2_freetumor.evaluation.command import evaluate_command  # days later the package may have changed

        text = evaluate_command(references, predictions, dataset_json, plans_file, chill=True)
        return f"FreeTumor: lesion-level evaluation of the validation cases\n{text}"
    except (ValueError, OSError, ImportError) as error:
        words = ["-ref", references, "-pred", predictions, "-djfile", dataset_json, "-pfile", plans_file, "--chill"]
        text = (
            f"WARNING: FreeTumor: the validation predictions were not scored at lesion level: {error}\nTraining, "
            "predictions and nnU-Net's summary.json are complete. Repeat only the scoring with\n"
            f"{shlex.join(['nnUNetv2_freetumor', 'evaluate', *map(str, words)])}"
        )
        print(text)
        return text
