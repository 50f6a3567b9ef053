"""Learning rate schedules that mmengine lacks."""

from mmengine.optim.scheduler import PolyLR as MMEnginePolyLR

from overhaul.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class PolyLR(MMEnginePolyLR):
    """Polynomial decay ``lr * (1 - t / T)^power`` over the T iterations from ``begin`` to ``end``, as in DeepLab.

    mmengine's own reaches ``eta_min`` one iteration early, with T - 1 in the formula, so that the last step is lost.
    Arguments as there.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.total_iters = self.end - self.begin
