"""Train on the unlabeled pool as well: a share of each batch comes from it, and its ignored voxels carry no loss."""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.pool import Pool, WithPool, default_share, ignore_value, open_pool, pool_folder


class RegionLoss(nn.Module):
    """nnU-Net's own loss for targets as its label manager makes them, another one for those with an ignore channel."""

    def __init__(self, own: nn.Module, ignoring: nn.Module) -> None:
        """Take both losses."""
        super().__init__()
        self.own, self.ignoring = own, ignoring

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Choose by the number of the target's channels: validation targets have no ignore channel."""
        finest_output, finest_target = (
            item[0] if isinstance(item, list | tuple) else item for item in (output, target)
        )
        ignored = finest_target.shape[1] > finest_output.shape[1]
        return (self.ignoring if ignored else self.own)(output, target)


class PoolMixin(nnUNetTrainer):
    """Draw a share of each training batch from the dataset's pool, where there is one; validation never sees it."""

    loss: Any
    label_manager: Any
    _pool: Pool | None = None

    def on_train_start(self) -> None:
        """Open the pool and prepare the loss for it, then let nnU-Net start its loaders."""
        if not self.was_initialized:
            self.initialize()
        self._pool = self._open_pool()
        if self._pool is not None and self.loss is not None and not self.label_manager.has_ignore_label:
            self.loss = self._loss_with_ignore()
        super().on_train_start()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Let regions keep the ignored voxels of the pool in a channel of their own, as nnU-Net does."""
        if self._pool is not None:
            kwargs["ignore_label"] = ignore_value(self.dataset_json)
        return super().get_training_transforms(*args, **kwargs)

    def get_tr_and_val_datasets(self) -> Any:
        """Get nnU-Net's data sets, the pool added to that for training."""
        training, validation = super().get_tr_and_val_datasets()
        if self._pool is None:
            return training, validation
        wanted = self._share_setting()
        joined = WithPool(
            training,
            self._pool,
            default_share(len(training.identifiers), len(self._pool.cases)) if wanted is None else wanted,
        )
        origin = "default: share of all cases, at most a half" if wanted is None else "unlabeled_share"
        counts = ", ".join(f"{name}: {value:.0f}" for name, value in sorted(self._pool.counts.items()))
        self.print_to_log_file(
            f"FreeTumor: {len(self._pool.cases)} unlabeled cases beside {len(training.identifiers)} labeled ones; "
            f"{100 * joined.share:.1f} % of the samples come from them ({origin}); taken out of host and loss there: "
            f"{counts or 'nothing'}"
        )
        return joined, validation

    def _share_setting(self) -> float | None:
        return plan.read_section(self.plans_manager.plans[plan.SECTION]).unlabeled_share

    def _open_pool(self) -> Pool | None:
        plans = self.plans_manager.plans
        folder = pool_folder(self.preprocessed_dataset_folder_base, plans, self.configuration_name)
        found = open_pool(folder, plans, self.dataset_json)
        if found is None:
            return None
        if found.waiting:
            self.print_to_log_file(
                f"WARNING: FreeTumor: {found.waiting} unlabeled cases are left out: nobody has looked for tumors in "
                f"them. Run 'nnUNetv2_freetumor add-unlabeled -d {plans['dataset_name']} -p {plans['plans_name']} -c "
                f"{self.configuration_name} --mark-suspects MODEL_FOLDER' with a model trained on this dataset."
            )
        return found if found.cases and self._share_setting() != 0 else None

    def _loss_with_ignore(self) -> nn.Module:
        """Build nnU-Net's loss as for a dataset with an ignore label; without ignored voxels it is the same loss."""
        own, labels = self.label_manager, self.dataset_json["labels"]
        with_ignore = self.dataset_json | {"labels": labels | {"ignore": ignore_value(self.dataset_json)}}
        self.label_manager = self.plans_manager.get_label_manager(with_ignore)
        try:
            ignoring = self._build_loss()
        finally:
            self.label_manager = own
        return RegionLoss(self.loss, ignoring) if own.has_regions else ignoring
