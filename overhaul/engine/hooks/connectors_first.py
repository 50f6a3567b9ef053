"""The first epoch of the paper's segmentation recipe: connectors alone."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from overhaul.engine.runner import bare_model
from overhaul.method.distiller import OverhaulDistiller
from overhaul.registry import HOOKS


@HOOKS.register_module()
class ConnectorsFirstHook(Hook):
    """Trains only the connectors for the first epochs, then everything, with fresh momentum.

    The weights of the student stay as they are meanwhile, though its batch norms go on gathering their running
    statistics. The epochs count for the schedule. Follows the official segmentation code, where a quirk of the schedule
    gives the connectors the plain base rate in that phase and ten times that afterwards. Does nothing to a student that
    trains alone.

    Args:
        epochs: Number of epochs. Default: 1.
        lr_factor: Factor on the learning rate of the connectors meanwhile. Default: 0.1, which takes back the
            ``lr_mult=10`` of the recipe.
    """

    # After RuntimeInfoHook has logged the scheduled rates, and restored before ParamSchedulerHook changes them.
    priority = 'HIGH'

    def __init__(self, epochs: int = 1, lr_factor: float = 0.1) -> None:
        self.epochs, self.lr_factor = epochs, lr_factor
        self._scheduled: list[float] | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Forget the momentum of the first phase when the second begins."""
        if runner.epoch == self.epochs and isinstance(bare_model(runner), OverhaulDistiller):
            runner.optim_wrapper.optimizer.state.clear()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Take the rate of everything but the connectors to 0 for this step."""
        model = bare_model(runner)
        if runner.epoch >= self.epochs or not isinstance(model, OverhaulDistiller):
            return
        connectors = {id(parameter) for parameter in model.connectors.parameters()}
        groups = runner.optim_wrapper.optimizer.param_groups
        self._scheduled = [group['lr'] for group in groups]
        for group in groups:
            in_connectors = [id(parameter) in connectors for parameter in group['params']]
            if any(in_connectors) and not all(in_connectors):
                raise ValueError(
                    'ConnectorsFirstHook needs the connectors in parameter groups of their own. Give them one in the '
                    'config: optim_wrapper.paramwise_cfg.custom_keys.connectors=dict(lr_mult=10).')
            group['lr'] *= self.lr_factor if all(in_connectors) else 0

    def after_train_iter(
            self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None) -> None:
        """Give the schedule its rates back."""
        if self._scheduled is not None:
            for group, rate in zip(runner.optim_wrapper.optimizer.param_groups, self._scheduled):
                group['lr'] = rate
            self._scheduled = None
