"""What stands before nnU-Net builds a generator's training: section, recipe, networks, optimizer; and its card."""

from typing import Any

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import nn

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.files.checkpoints import read_checkpoint
from nnunetv2_freetumor.files.synthetic_names import is_synthetic
from nnunetv2_freetumor.generator_training import card, log
from nnunetv2_freetumor.generator_training.adversaries import ADVERSARIES, Adversary
from nnunetv2_freetumor.generator_training.recipes import frame_for, recipe_for
from nnunetv2_freetumor.generator_training.step import Networks, Schedule, make_optimizer
from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.generators.weights import build_network
from nnunetv2_freetumor.pool.training import PoolMixin
from nnunetv2_freetumor.training import augmentation, epoch_log
from nnunetv2_freetumor.training.start import resolve_section
from nnunetv2_freetumor.training.synthetic_splits import SplitGuardMixin

STOCK_EPOCHS, STOCK_ITERATIONS = 1000, 250  # nnU-Net's own: the recipe's take their place
ONE_GPU = (
    "nnUNetTrainerFreeTumorGenerator trains on a single GPU: generator and critic alternate, which nnU-Net's "
    "distributed training does not support. Omit -num_gpus, or set it to 1."
)


class GeneratorSetup(PoolMixin, SplitGuardMixin):
    """Settle what is trained and how; the stage itself is in `trainer`."""

    num_epochs: int
    num_iterations_per_epoch: int
    network: Any

    # No __init__: nnU-Net records the arguments of the outermost one by reading that method's local variables.

    def initialize(self) -> None:
        """Settle section and recipe before nnU-Net asks for networks and optimizer."""
        if self.is_ddp:
            raise ValueError(ONE_GPU)
        self.enable_deep_supervision = False
        plans, folder = self.plans_manager.plans, self.preprocessed_dataset_folder_base
        section = resolve_section(plans, self.configuration_name, self.dataset_json, folder)
        self.my_init_kwargs["plans"][plan.SECTION] = plans[plan.SECTION]
        self._settle(section)
        self.num_val_iterations_per_epoch = self.recipe.validation_iterations
        self.num_epochs = _unless_set(self.num_epochs, STOCK_EPOCHS, self.recipe.epochs)
        self.num_iterations_per_epoch = _unless_set(
            self.num_iterations_per_epoch, STOCK_ITERATIONS, self.recipe.iterations_per_epoch
        )
        super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does, without synthetic cases: planted tumors are no model for a generator."""
        training, validation = super().do_split()
        return [case for case in training if not is_synthetic(case)], validation

    def _settle(self, section: plan.Section) -> None:
        """Derive everything that follows from the section."""
        cases, _ = self.do_split()
        self._cases = tuple(cases)
        self.section = card.learnable_targets(section, self.preprocessed_dataset_folder, cases, self.fold)
        self._unlearned = [target.name for target in section.targets if target not in self.section.targets]
        self.recipe = recipe_for(self.section)
        self.frame = frame_for(self.recipe, self.section)

    def make_card(self, judge: str) -> Card:
        """Build the card of the generator as it is now; `judge` is the name of the one that it learns from."""
        training = card.Training(
            dataset=self.plans_manager.dataset_name,
            plans=self.plans_manager.plans_name,
            configuration=self.configuration_name,
            fold=str(self.fold),
            cases=self._cases,
            phantoms=card.is_phantom_data(self.plans_manager.plans, self.dataset_json),
            unlabeled=0 if self.pool is None else len(self.pool.cases),
        )
        return card.make_card(self.section, self.recipe, self.frame, training=training, judge=judge)

    def announce(self, judge: str, weights: str) -> None:
        """Log what is about to be trained, from what, and where the weights go."""
        frame, hosts = self.frame, ", ".join(card.host_names(self.section.targets))
        self.print_to_log_file(
            f"FreeTumor generator: recipe {card.recipe_text(self.section)}, kind {self.recipe.kind}, hosts {hosts}, "
            f"window {frame.window_hu} HU, {frame.side_voxels} voxels of {frame.spacing_mm} mm, judge {judge}, "
            f"{len(self._cases)} training cases, seed {self.section.seed}; weights are written to "
            f"{weights}\n{self.recipe}"
        )
        if self._unlearned:
            self.print_to_log_file(
                f"WARNING: FreeTumor generator: {', '.join(self._unlearned)} will not be learned: no training case of "
                f"fold {self.fold} contains a real tumor of this kind."
            )

    def build_network_architecture(  # type: ignore[override]
        self,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build generator, critic and moving average."""
        targets = self.section.targets
        self.adversary: Adversary = ADVERSARIES[self.recipe.adversarial](self.frame.window_hu)
        generator = build_network(self.recipe.kind, len(card.host_names(targets)))
        return Networks(generator, self.adversary.network(), self.recipe, len(targets))

    def configure_optimizers(self) -> Any:
        """Build one optimizer for both networks, and its schedule."""
        optimizer = make_optimizer(self.network, self.recipe)
        return optimizer, Schedule(optimizer, self.recipe.decay_power, self.num_epochs)

    def _build_loss(self) -> None:
        """Leave nnU-Net's segmentation loss out."""

    def _do_i_compile(self) -> bool:
        return False

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Leave the network alone: there is no deep supervision."""

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Take the section from nnU-Net's checkpoint, then load it."""
        read = filename_or_checkpoint
        plans = (read_checkpoint(read) if isinstance(read, str) else read)["init_args"]["plans"]
        ours = self.plans_manager.plans
        if plan.SECTION in ours and plan.read_section(ours[plan.SECTION]) != plan.read_section(plans[plan.SECTION]):
            self.print_to_log_file(
                "FreeTumor generator: the plans' freetumor section has changed; this training continues with its "
                "original section."
            )
        ours[plan.SECTION] = plans[plan.SECTION]  # before networks, rates and length are made from it
        super().load_checkpoint(read)
        self._settle(plan.read_section(plans[plan.SECTION]))
        epoch_log.register(self.logger, self.current_epoch, log.LOGGER_PREFIX, log.NAMES)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Leave the loaders nnU-Net's spatial transforms only: a generator learns from clean CT."""
        return augmentation.split(super().get_training_transforms(*args, **kwargs)).loader

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Leave validation patches as they are, padding and labels included."""
        return ComposeTransforms([])


def _unless_set(present: int, stock: int, wanted: int) -> int:
    """Let a recipe's length take the place of nnU-Net's own, but not of one that a variant has set."""
    return wanted if present == stock else present
