"""Running statistics of batch norms that are the same on all GPUs."""

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from overhaul.engine.runner import bare_model
from overhaul.registry import HOOKS


@HOOKS.register_module()
class AverageStatisticsHook(Hook):
    """Replaces the running statistics of batch norms, after each step, by their mean over all processes.

    Each process moves them with its own part of the batch. Validated as they are, every process would judge another
    network, and the checkpoint has only that of the first. Unlike mmengine's ``SyncBuffersHook`` it is done before an
    iteration is saved, and touches nothing but these statistics. The official code keeps those of the first GPU. Does
    nothing in a single process.
    """

    priority = 'HIGH'  # before anything that saves, copies or validates the model

    def after_train_iter(
            self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None) -> None:
        """Average them."""
        statistics = [
            buffer for module in bare_model(runner).modules() if isinstance(module, _BatchNorm) and module.training
            for buffer in (module.running_mean, module.running_var) if buffer is not None]
        dist.all_reduce_params(statistics, op='mean')
