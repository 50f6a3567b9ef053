"""A training in several processes that all begin with the same, or do not begin."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from overhaul.engine.runner import bare_model
from overhaul.engine.same_training import leaves
from overhaul.files.weights import checksum
from overhaul.method.distiller import OverhaulDistiller

_DECISIVE = (
    'model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr', 'custom_hooks', 'randomness', 'sync_bn')


def prepare(runner: Runner) -> None:
    """Make ``runner`` compare its processes before it trains, and refuse where they differ.

    Nothing else would tell: gradients of different trainings can be averaged, too.
    """
    if dist.is_distributed():
        runner.register_hook(_SameStartHook())


class _SameStartHook(Hook):
    priority = 'VERY_HIGH'  # before any hook that the others would wait in

    def before_train(self, runner: Runner) -> None:
        """Compare."""
        check_same(dist.all_gather_object((socket.gethostname(), start_of(runner))))


def start_of(runner: Runner) -> dict[str, object]:
    """Return, by name, all that the processes of a training must have in common."""
    model, cfg = bare_model(runner), runner.cfg.to_dict()
    start = dict(leaves({name: cfg[name] for name in _DECISIVE if name in cfg}))
    start['train_dataloader.batch_size'] = cfg.get('train_dataloader', {}).get('batch_size')
    start['number of training images'] = len(runner.train_dataloader.dataset)
    start['iteration to go on from'] = runner.iter
    start['checksum of the weights'] = checksum(model)
    if isinstance(model, OverhaulDistiller):
        start['checksum of the teacher'] = checksum(model.teacher)
    return start


def check_same(starts: Sequence[tuple[str, dict[str, object]]]) -> None:
    """Compare the starts of all processes, each with the name of its machine.

    Raises:
        ValueError: If one differs from that of process 0; names the first difference.
    """
    host, first = starts[0]
    for rank, (other_host, other) in enumerate(starts):
        differ = [name for name in {**first, **other} if repr(first.get(name)) != repr(other.get(name))]
        if differ:
            raise ValueError(
                f'The processes of this training do not begin with the same: "{differ[0]}" is {first.get(differ[0])!r} '
                f'in process 0 on {host} and {other.get(differ[0])!r} in process {rank} on {other_host}. Give all of '
                'them the same config, options and files; to resume, the work directory of process 0.')
