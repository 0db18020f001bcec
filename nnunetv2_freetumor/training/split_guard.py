"""Keep synthetic cases, and what they were made from, apart from validation, whatever split nnU-Net makes up."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_freetumor.training.synthetic_splits import check_split


class SplitGuardMixin(nnUNetTrainer):
    """Refuse a numbered fold that would validate on synthetic cases, or on what these were made from."""

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does, and look at what that gives."""
        training, validation = super().do_split()
        check_split(training, validation, self.fold)
        return training, validation
