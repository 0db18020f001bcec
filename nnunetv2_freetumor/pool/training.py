"""Train on the unlabeled pool too: a share of each batch comes from it, and its ignored voxels carry no loss."""

from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.pool.store import (
    Pool,
    WithPool,
    check_compared,
    default_share,
    ignore_value,
    open_pool,
    pool_folder,
)

LEARNS_FROM_IGNORED = (
    "The unlabeled pool has voxels that must not be learned from, but this trainer's loss does not ignore them. Use a "
    "trainer whose loss supports nnU-Net's ignore label, as nnUNetTrainer's does, or set \"unlabeled_share\": 0 in the "
    "plans' freetumor section."
)


class RegionLoss(nn.Module):
    """Apply nnU-Net's own loss to targets as its label manager makes them, another to those with an ignore channel."""

    def __init__(self, own: nn.Module, ignoring: nn.Module) -> None:
        """Keep both losses."""
        super().__init__()
        self.own, self.ignoring = own, ignoring

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Choose by the number of the target's channels: validation targets have no ignore channel."""
        finest_output, finest_target = (
            item[0] if isinstance(item, list | tuple) else item for item in (output, target)
        )
        ignored = finest_target.shape[1] > finest_output.shape[1]
        return (self.ignoring if ignored else self.own)(output, target)


def check_ignores(loss: nn.Module, output: torch.Tensor, target: torch.Tensor, ignored: torch.Tensor) -> None:
    """Check on a made-up patch that ignored voxels do not change a loss, and that their outputs get no gradient.

    Args:
        loss: any segmentation loss.
        output: (b c x y z), of a network.
        target: (b 1 x y z) labels, or (b regions+1 x y z).
        ignored: (b 1 x y z), the voxels that the target ignores.

    Raises:
        ValueError: the text says what to use instead.
    """
    output = output.clone().requires_grad_()
    levels = len(loss.weight_factors) if isinstance(loss, DeepSupervisionWrapper) else 0
    try:
        loss([output] * levels, [target] * levels).backward() if levels else loss(output, target).backward()
    except (RuntimeError, IndexError) as error:  # the loss takes the ignore label for a class
        raise ValueError(f"{LEARNS_FROM_IGNORED} ({error})") from error
    assert output.grad is not None, "backward has run"
    if output.grad[ignored.expand_as(output)].any() or not output.grad.any():
        raise ValueError(LEARNS_FROM_IGNORED)


class PoolMixin(nnUNetTrainer):
    """Draw a share of each training batch from the dataset's pool, if it has one; validation never sees it."""

    loss: Any
    label_manager: Any
    pool: Pool | None = None
    _trying_loss = False

    def on_train_start(self) -> None:
        """Open the pool and prepare the loss for it, then let nnU-Net start its loaders."""
        if not self.was_initialized:
            self.initialize()
        self.pool = self._open_pool()
        if self.pool is not None and self.loss is not None and not self.label_manager.has_ignore_label:
            self.loss = self._loss_with_ignore()
        super().on_train_start()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's transforms; regions get a channel for the ignored voxels of the pool, as in nnU-Net."""
        if self.pool is not None:
            kwargs["ignore_label"] = ignore_value(self.dataset_json)
        return super().get_training_transforms(*args, **kwargs)

    def get_tr_and_val_datasets(self) -> Any:
        """Return nnU-Net's data sets, with the pool added to the one for training."""
        training, validation = super().get_tr_and_val_datasets()
        if self.pool is None:
            return training, validation
        check_compared(self.pool.folder, [*training.identifiers, *validation.identifiers])
        wanted = self._share_setting()
        joined = WithPool(
            training,
            self.pool,
            default_share(len(training.identifiers), len(self.pool.cases)) if wanted is None else wanted,
        )
        origin = "default: share of all cases, at most a half" if wanted is None else "unlabeled_share"
        counts = ", ".join(f"{name}: {value:.10g}" for name, value in sorted(self.pool.counts.items()))
        self.print_to_log_file(
            f"FreeTumor: {len(self.pool.cases)} unlabeled cases in addition to {len(training.identifiers)} labeled "
            f"ones; {100 * joined.share:.1f} % of the samples are unlabeled ({origin}); excluded from their hosts and "
            f"loss: {counts or 'nothing'}"
        )
        return joined, validation

    def _do_i_compile(self) -> bool:
        return not self._trying_loss and super()._do_i_compile()

    def _share_setting(self) -> float | None:
        return plan.read_section(self.plans_manager.plans[plan.SECTION]).unlabeled_share

    def _open_pool(self) -> Pool | None:
        if self._share_setting() == 0:
            return None
        plans = self.plans_manager.plans
        folder = pool_folder(self.preprocessed_dataset_folder_base, plans, self.configuration_name)
        found = open_pool(folder, plans, self.configuration_name, self.dataset_json)
        if found is None:
            return None
        if found.waiting:
            self.print_to_log_file(
                f"WARNING: FreeTumor: {found.waiting} unlabeled cases are left out: they have not been checked for "
                f"tumors. Run 'nnUNetv2_freetumor add-unlabeled -d {plans['dataset_name']} -p {plans['plans_name']} -c "
                f"{self.configuration_name} --mark-suspects MODEL_FOLDER' with a model trained on this dataset."
            )
        return found if found.cases else None

    def _loss_with_ignore(self) -> nn.Module:
        """Build nnU-Net's loss as for a dataset with an ignore label; without ignored voxels both losses are equal."""
        own, labels = self.label_manager, self.dataset_json["labels"]
        with_ignore = self.dataset_json | {"labels": labels | {"ignore": ignore_value(self.dataset_json)}}
        self.label_manager = self.plans_manager.get_label_manager(with_ignore)
        try:
            self._check_loss(ignore_value(self.dataset_json))
            ignoring = self._build_loss()
        finally:
            self.label_manager = own
        return RegionLoss(self.loss, ignoring) if own.has_regions else ignoring

    def _check_loss(self, ignore: int) -> None:
        heads, regions = self.label_manager.num_segmentation_heads, self.label_manager.has_regions
        # several GPUs sum up their Dice through the device; elsewhere a wrong label must not end the device's life
        device = self.device if self.is_ddp else torch.device("cpu")
        self._trying_loss = True
        loss = self._build_loss()
        self._trying_loss = False
        label = torch.zeros(2, 1, 8, 8, 8, dtype=torch.int16, device=device)
        label[:, :, 2:6], label[:, :, 3:5, 3:5] = 1, ignore
        output = torch.linspace(-1, 1, 1024 * heads, device=device).reshape(heads, 2, 8, 8, 8).transpose(0, 1)
        channels = torch.cat([label == 1] * heads + [label == ignore], 1)
        check_ignores(loss, output, channels if regions else label, label == ignore)
