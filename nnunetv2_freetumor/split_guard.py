"""Keep synthetic cases out of the validation of numbered folds, whatever split nnU-Net makes up."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_freetumor.synthetic_splits import check_validation


class SplitGuardMixin(nnUNetTrainer):
    """Refuse a split that would validate on synthetic cases."""

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does, and look at what is validated on."""
        training, validation = super().do_split()
        check_validation(validation, self.fold)
        return training, validation
