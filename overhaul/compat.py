"""Every workaround for the stack, each with its reason and the condition under which it can be deleted."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner


def apply() -> None:
    """Apply the workarounds that must be in place before mmseg is imported or a checkpoint is read. Idempotent."""
    _stub_mmcv_ops()
    _allow_mmengine_checkpoints()


def _stub_mmcv_ops() -> None:
    """Let mmseg import next to mmcv-lite.

    mmseg 1.2.2 imports ``mmcv.ops`` unconditionally and mmcv-lite has no compiled ``mmcv._ext``. The stub has every
    operator, and each raises when it is called. A full mmcv is left as it is.
    Delete when mmseg guards that import.
    """
    if importlib.util.find_spec('mmcv') is None:
        raise ModuleNotFoundError(
            'Overhaul needs mmcv, which is not installed. `pip install mmcv-lite==2.1.0` brings the build that needs '
            'no compiler; a full mmcv 2.x does as well.')
    if 'mmcv._ext' not in sys.modules and importlib.util.find_spec('mmcv._ext') is None:
        stub = _OperatorStub('mmcv._ext')
        # No loader: that is how mmengine finds out that this is no full mmcv.
        stub.__spec__ = ModuleSpec('mmcv._ext', loader=None)
        sys.modules['mmcv._ext'] = stub


class _OperatorStub(ModuleType):
    """Stands in for the compiled operators of mmcv: any name is there, none but the two below can be called."""

    @staticmethod
    def get_compiler_version() -> str:
        """Say that nothing was compiled, as ``mmcv.utils.collect_env`` does when there are no operators."""
        return 'n/a'

    get_compiling_cuda_version = get_compiler_version

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing_operator(*_: object, **__: object) -> NoReturn:
            raise ImportError(
                f'The operator "{name}" is part of the full mmcv, and mmcv-lite is installed. '
                'Replace it: `pip uninstall mmcv-lite`, then install mmcv as its documentation says.')

        return missing_operator


def _history_buffer_attribute(owner: object, name: str) -> object:
    """Stand in for ``getattr`` while unpickling: it reaches four methods of HistoryBuffer and nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise ValueError(f'Refused to read {name!r} of {owner!r}: a checkpoint has no business with it.')


def _allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine writes.

    mmengine 0.10.7 pickles its HistoryBuffer (through ``getattr``) and numpy scalars into every checkpoint.
    The bare ``getattr`` would open the whole interpreter to a hostile file, so a restricted one takes its name.
    Delete when mmengine writes plain containers only, and those older files need not be read any more.
    """
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    allowed = [
        HistoryBuffer, np.ndarray, np.dtype,
        (_history_buffer_attribute, 'builtins.getattr'),
        (_history_buffer_attribute, '__builtin__.getattr'),
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # as written by numpy 1 and by numpy 2
        allowed += [(multiarray._reconstruct, f'{module}._reconstruct'), (multiarray.scalar, f'{module}.scalar')]
    allowed += [type(np.dtype(name)) for name in ('f8', 'f4', 'i8', 'i4', 'u1', '?')]
    torch.serialization.add_safe_globals(allowed)


def never_run_checkpoints(runner: Runner) -> None:
    """Keep ``runner`` from running the text of a config that a checkpoint to resume from brings along.

    mmengine 0.10.7 reads ``meta['config']``, a Python program, to look for the number of GPUs in it, which it does not
    write any more. ``weights_only`` is no help there, since the program is a harmless string until it is run.
    Delete when ``Runner.resume`` leaves that text alone.
    """
    class ForgetConfig(Hook):
        priority = 'VERY_HIGH'

        def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
            checkpoint.get('meta', {}).pop('config', None)

    runner.register_hook(ForgetConfig())


def prepare_launcher(cfg: Config) -> None:
    """Make ``launcher='pytorch'`` work on a machine without a GPU, with the gloo backend. Edits ``cfg``.

    mmengine 0.10.7 calls ``torch.cuda.set_device`` and hands DDP device ids even when the model is on the CPU.
    Delete when a CPU launch works in mmengine by itself.
    """
    if cfg.get('launcher', 'none') == 'none' or torch.cuda.is_available():
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    # `broadcast_buffers` restates mmengine's default, which it drops as soon as there is a model_wrapper_cfg.
    default = dict(
        type='MMDistributedDataParallel', broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = {**default, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
