"""Every workaround for the stack, each with its reason and the condition under which it can be deleted.

Two more have a file of their own: own_configs.py, which must not need torch, and operators.py, which needs torchvision
and is imported only when an operator is called.
"""

import functools
import gc
import importlib.util
import io
import math
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import torch
from mmengine.config import Config
from mmengine.config import config as config_files
from mmengine.config import utils as config_utils
from mmengine.dataset import InfiniteSampler
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook, checkpoint_hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from overhaul.whole import write_whole


def apply() -> None:
    """Apply the workarounds that must be in place before mmseg is imported or a file is read. Idempotent."""
    _stub_mmcv_ops()
    _keep_find_loader()
    _stub_mmaction_drn()
    if not any(isinstance(finder, _SSDFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SSDFinder())
    _allow_mmengine_checkpoints()
    _read_metafiles_once()
    _know_pythons_own_modules()
    LocalBackend.put = _put_whole
    checkpoint_hook.open = _open_whole
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        saves = getattr(CheckpointHook, name)
        if not hasattr(saves, '__wrapped__'):
            setattr(CheckpointHook, name, _remove_afterwards(saves))


def _stub_mmcv_ops() -> None:
    """Let mmseg and mmdet import next to mmcv-lite, and detect.

    mmseg 1.2.2 and mmdet 3.3.0 import ``mmcv.ops`` unconditionally and mmcv-lite has no compiled ``mmcv._ext``. The
    stub has every operator: those of operators.py work, any other raises when it is called. A full mmcv is left as it
    is. Delete with operators.py, when both also guard that import.

    mmdet takes one class from ``mmcv.cnn.bricks.transformer``, which has it only if it was imported after the stub;
    mmpretrain imports it, too, and may have come first.
    """
    if 'mmcv._ext' not in sys.modules and importlib.util.find_spec('mmcv._ext') is None:
        stub = _OperatorStub('mmcv._ext')
        # No loader: that is how mmengine finds out that this is no full mmcv.
        stub.__spec__ = ModuleSpec('mmcv._ext', loader=None)
        sys.modules['mmcv._ext'] = stub
    transformer = sys.modules.get('mmcv.cnn.bricks.transformer')
    if transformer is not None and not hasattr(transformer, 'MultiScaleDeformableAttention'):
        from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention

        transformer.MultiScaleDeformableAttention = MultiScaleDeformableAttention


def _read_metafiles_once() -> None:
    """Read the metafiles of a zoo once in a process.

    For each name such as ``mmseg::fcn/...py`` mmengine 0.10.7 reads those of all models, in up to a second. Delete
    when it keeps what it has read.
    """
    if not hasattr(config_utils.load, 'cache_info'):
        config_utils.load = functools.cache(config_utils.load)


def _know_pythons_own_modules() -> None:
    """Let a config with ``read_base()`` call what it imports of Python's own modules, as ``deepcopy``, in any venv.

    mmengine 0.10.7 knows them by their folder, and knows two folders: that of the venv, and ``/usr/lib/python*``. Those
    of a Python that pyenv, uv or a container has put elsewhere would be taken for what is imported later. Delete when
    it asks ``sys.stdlib_module_names``.
    """
    knows = config_utils._is_builtin_module
    if not hasattr(knows, '__wrapped__'):
        @functools.wraps(knows)
        def is_pythons_own(name: str) -> bool:
            return name.partition('.')[0] in sys.stdlib_module_names or knows(name)

        for module in (config_utils, config_files):
            module._is_builtin_module = is_pythons_own


def _keep_find_loader() -> None:
    """Let mmengine and mmcv look for operators on Python 3.14, which has no ``pkgutil.find_loader`` any more.

    Delete when neither mmengine 0.10.7 nor mmcv 2.1.0, which call it, needs to be supported.
    """
    if not hasattr(pkgutil, 'find_loader'):
        pkgutil.find_loader = lambda name: getattr(importlib.util.find_spec(name), 'loader', None)


def _stub_mmaction_drn() -> None:
    """Let mmaction2 import. The package of 1.2.0 lacks a folder, of the localizer DRN, that its models import.

    A clone of its repository has the folder, and is left as it is. Delete when a package has it, too.
    """
    name, package = 'mmaction.models.localizers.drn', importlib.util.find_spec('mmaction')
    if package is not None and package.origin and not Path(package.origin).with_name('models').joinpath(
            'localizers/drn').is_dir():
        sys.modules[name] = ModuleType(name)
        sys.modules[f'{name}.drn'] = drn = ModuleType(f'{name}.drn')
        drn.DRN = type('DRN', (), {})  # in no registry, so that a config cannot ask for it


class _OperatorStub(ModuleType):
    """Stands in for the compiled operators of mmcv: any name is there, to be looked for when it is called."""

    @staticmethod
    def get_compiler_version() -> str:
        """Say that nothing was compiled, as ``mmcv.utils.collect_env`` does when there are no operators."""
        return 'n/a'

    get_compiling_cuda_version = get_compiler_version

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith('__'):
            raise AttributeError(name)

        def operator(*arguments: object, **keywords: object) -> object:
            from overhaul import operators

            if torch.compiler.is_compiling():  # what a backward pass fills in would stay 0, as torch 2.11 compiles it
                torch._dynamo.graph_break()
            return operators.find(name)(*arguments, **keywords)

        return operator


class _SSDFinder(MetaPathFinder):
    """Lets the SSD heads of mmdet predict, as soon as the file that has them is imported.

    mmdet 3.3.0 asks every head for its ``loss_cls`` when it predicts, and that of SSD never gets one. Delete when it
    does.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find nothing but the file of the head, whose class is mended when it has run."""
        if name != 'mmdet.models.dense_heads.ssd_head':
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None:
            run = spec.loader.exec_module
            loss = property(lambda head: head._modules.get('loss_cls'))  # None, if no head that derives from it has one
            spec.loader.exec_module = lambda module: (run(module), setattr(module.SSDHead, 'loss_cls', loss))
        return spec


def _history_buffer_attribute(owner: object, name: str) -> object:
    """Stand in for ``getattr`` while unpickling: it reaches four methods of HistoryBuffer and nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise ValueError(f'Refused to read {name!r} of {owner!r}: a checkpoint has no business with it.')


class _ArrayType:
    """Stand in for ``numpy.dtype`` while unpickling: numbers of a fixed size and nothing else."""

    def __init__(self, name: str, *_: object) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in 'biufc':
            raise ValueError(f'Refused to make an array of {self.dtype}: a checkpoint has numbers in it.')

    def __setstate__(self, state: tuple) -> None:
        _, byte_order, *rest = state
        if rest[:3] != [None] * 3:
            raise ValueError(f'Refused to make parts of a {self.dtype}: a checkpoint has plain numbers in it.')
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array(np.ndarray):
    """Stand in for ``numpy.ndarray`` while unpickling: begins empty, and is filled with bytes that are numbers."""

    def __new__(cls, *_: object) -> NoReturn:
        raise ValueError('Refused to make an array of raw memory: a checkpoint has numbers in it.')

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, content = state
        super().__setstate__((1, shape, dtype.dtype, fortran_order, bytes(content)))

    def __reduce__(self) -> tuple:
        return self.view(np.ndarray).__reduce__()


def _empty_array(*_: object) -> _Array:
    return np.ndarray.__new__(_Array, 0)


def _scalar(dtype: _ArrayType, content: bytes) -> np.generic:
    return np.frombuffer(bytes(content), dtype.dtype)[0]


def _allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine writes.

    mmengine 0.10.7 pickles its HistoryBuffer (through ``getattr``) and numpy scalars into every checkpoint.
    The bare ``getattr`` would open the whole interpreter to a hostile file, and numpy's own functions make arrays of
    objects out of its bytes, so restricted ones take their names.
    Delete when mmengine writes plain containers only, and those older files need not be read any more.
    """
    allowed = [
        HistoryBuffer, _Array, _ArrayType,
        (_history_buffer_attribute, 'builtins.getattr'),
        (_history_buffer_attribute, '__builtin__.getattr'),
        (_Array, 'numpy.ndarray'), (_ArrayType, 'numpy.dtype'),
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # as written by numpy 1 and by numpy 2
        allowed += [(_empty_array, f'{module}._reconstruct'), (_scalar, f'{module}.scalar')]
    torch.serialization.add_safe_globals(allowed)


def _put_whole(backend: LocalBackend, obj: bytes, filepath: str | Path) -> None:
    """Write a file that is there whole or not at all.

    mmengine 0.10.7 writes a checkpoint in place, so an interruption or a full disk leaves half of one.
    Delete when it writes beside and renames.
    """
    write_whole(Path(filepath), lambda draft: draft.write_bytes(obj))


@contextmanager
def _open_whole(path: str, mode: str) -> Iterator[io.StringIO]:
    """Open ``last_checkpoint`` to write it as :func:`_put_whole` does.

    mmengine 0.10.7 empties that file and then writes it, so an interruption leaves one that names no checkpoint.
    Delete with :func:`_put_whole`.
    """
    text = io.StringIO()
    yield text
    _put_whole(LocalBackend(), text.getvalue().encode(), path)


def _remove_afterwards(save: Callable[..., None]) -> Callable[..., None]:
    """Let a method of CheckpointHook remove a checkpoint only when the one that replaces it is there.

    mmengine 0.10.7 removes before it saves: with ``max_keep_ckpts=1``, or of the best ones, the only one.
    Delete when it saves first.
    """
    @functools.wraps(save)
    def save_then_remove(hook: CheckpointHook, *arguments: object, **keywords: object) -> None:
        backend, outdated = hook.file_backend, []
        remove, backend.remove = backend.remove, outdated.append
        try:
            save(hook, *arguments, **keywords)
        finally:
            backend.remove = remove
        for path in outdated:
            remove(path)

    return save_then_remove


def save_names_that_load(model: nn.Module) -> None:
    """Let those parts of ``model`` that are classifiers of timm or Hugging Face be saved as they are loaded.

    mmpretrain 1.2.0 takes ``model.`` out of their names in a copy of the state, which is lost where the classifier is a
    part of a distiller or of an average, and puts it in, once more, when it loads. Delete when it changes the state
    itself.
    """
    for module in model.modules():
        rename = getattr(module, '_remove_state_dict_prefix', None)
        for key, hook in module._state_dict_hooks.items():
            if hook is rename:
                module._state_dict_hooks[key] = functools.partial(_rename_within, rename)


def _rename_within(rename: Callable, module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    renamed = rename(module, state, prefix, metadata)
    state.clear()
    state.update(renamed)


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


def refuse_endless_epochs(runner: Runner) -> None:
    """Keep ``runner`` from an epoch that has no end, with no validation and no checkpoint after it.

    That is what mmengine 0.10.7 begins where a training by epochs has an InfiniteSampler, as a config by iterations
    has that is changed to epochs. Delete when it refuses that.
    """
    class LookAtSampler(Hook):
        priority = 'VERY_HIGH'

        def before_train(self, runner: Runner) -> None:
            loop = runner.train_loop
            if isinstance(loop, EpochBasedTrainLoop) and isinstance(loop.dataloader.sampler, InfiniteSampler):
                raise ValueError(
                    'The training goes by epochs, and the InfiniteSampler of its train_dataloader has no end: the '
                    'first epoch would go on for ever. Take sampler=dict(type="DefaultSampler", shuffle=True), or go '
                    'by iterations, with train_cfg=dict(type="IterBasedTrainLoop", max_iters=...).')

    runner.register_hook(LookAtSampler())


def never_change_rate(runner: Runner) -> None:
    """Keep ``runner`` from resuming a training with another batch size in total, learning rate or number of groups.

    mmengine 0.10.7 says that ``auto_scale_lr`` adjusts the rate to a new number of GPUs, and then takes it from the
    checkpoint, as it silently does where the config has another. Schedules that count iterations would be off as well.
    A training that is made longer, or shorter, keeps its schedule just as silently, and is told so.
    Delete when ``Runner.resume`` refuses it, or adjusts rate and schedule.
    """
    class CompareRates(Hook):
        priority = 'VERY_HIGH'

        def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
            before, now = _rates(checkpoint.get('optimizer', {})), _rates(runner.optim_wrapper.state_dict())
            if runner._resume and len(before) != len(now):
                raise ValueError(
                    f'The optimizer of the training to resume has its parameters in groups, {len(before)} in number, '
                    f'and that of this config has {len(now)}: optim_wrapper.constructor or paramwise_cfg, or what is '
                    'trained, has changed. Resume with the config of then, or start anew from the weights: '
                    '--cfg-options load_from=PATH.')
            differ = [pair for pair in zip(before, now) if not math.isclose(*pair)]
            if runner._resume and differ:
                raise ValueError(
                    'The training to resume began with a learning rate of {:g}, and this one would with {:g}. Either '
                    'the config has changed, or the total batch, to which auto_scale_lr adapts the rate, and with it '
                    'the schedule is another. Resume on as many GPUs as before or with a train_dataloader.batch_size '
                    'that makes up for it, or start anew from the weights: --cfg-options load_from=PATH.'
                    .format(*differ[0]))
            ends = [[scheduler['end'] for scheduler in schedulers] for schedulers in (
                checkpoint.get('param_schedulers', []), [each.state_dict() for each in runner.param_schedulers or []])]
            if runner._resume and ends[0] != ends[1]:
                runner.logger.warning(
                    'The learning rate follows the schedule of the training that is resumed, which ends at {}, and not '
                    'that of this config, which ends at {}. For a schedule of another length start anew, from the '
                    'weights: --cfg-options load_from=PATH.'.format(*(max(end, default='no time') for end in ends)))

    runner.register_hook(CompareRates())


def _rates(optimizer: dict) -> list[float]:
    return [group.get('initial_lr', group['lr']) for group in optimizer.get('param_groups', [])]


def leave_launcher() -> None:
    """Leave the process group, if there is one, and wait for its threads. To be called when the runner is out of use.

    mmengine 0.10.7 leaves the group to the end of the process. There a thread of gloo that still has to let go of a
    tensor cannot get hold of the interpreter any more, and aborts what went well. The threads end with the last that
    knows the group: the model, which lies in cycles of references. Delete when mmengine leaves the group by itself.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def prepare_launcher(cfg: Config) -> None:
    """Make the launchers work on a machine without a GPU, with gloo, and keep DDP's settings. Edits ``cfg``.

    mmengine 0.10.7 calls ``torch.cuda.set_device`` and hands DDP device ids even when the model is on the CPU. Where
    there is a ``model_wrapper_cfg``, it forgets its own settings of DDP, among them not to broadcast buffers.
    Delete when a CPU launch works in mmengine by itself, and it adds what a ``model_wrapper_cfg`` leaves out.

    Raises:
        ValueError: If no launcher has started this process; if it is one of more processes than the machine has GPUs;
            if ``sync_bn`` is asked for without GPUs; if gradients are accumulated in a static graph.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    on_gpus = torch.cuda.is_available()
    _check_launched(launcher, on_gpus)
    _check_static_graph(cfg)
    if not on_gpus and cfg.get('sync_bn'):
        raise ValueError(
            'sync_bn needs GPUs, for PyTorch has no synchronised batch norm for the CPU. Set sync_bn=None, or run a '
            'single process.')
    if not on_gpus and not torch.distributed.is_initialized():
        if launcher == 'slurm':
            _slurm_environment()
        torch.distributed.init_process_group('gloo')
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})  # as the log says
    settings = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {})}
    wrapper = MODEL_WRAPPERS.get(settings['type'])
    if wrapper is not None and issubclass(wrapper, DistributedDataParallel):
        default = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
        settings = default | settings | ({} if on_gpus else dict(device_ids=None))
    cfg.model_wrapper_cfg = settings


def _check_static_graph(cfg: Config) -> None:
    accumulates = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1) > 1
    if accumulates and (cfg.get('model_wrapper_cfg') or {}).get('static_graph'):
        raise ValueError(
            "static_graph=True in the model_wrapper_cfg does not go with the optim_wrapper's accumulative_counts: DDP "
            'takes the first step as the pattern of all, and steps that only accumulate are different. Set one of the '
            'two back.')


def _check_launched(launcher: str, on_gpus: bool) -> None:
    rank, local_rank, program, script, visible = {
        'pytorch': ('RANK', 'LOCAL_RANK', 'torchrun', 'tools/dist_train.sh', 'in CUDA_VISIBLE_DEVICES'),
        'slurm': ('SLURM_PROCID', 'SLURM_LOCALID', 'srun', 'tools/slurm_train.sh',
                  'which --gpus-per-task and --gpu-bind hide')}[launcher]
    if rank not in os.environ:
        raise ValueError(
            f'--launcher {launcher} is for processes that {program} has started, as {script} does it. Use that script, '
            'or leave the launcher out to train in a single process.')
    place, gpus = int(os.environ.get(local_rank, 0)), torch.cuda.device_count()
    if on_gpus and place >= gpus:
        raise ValueError(
            f'This is process {place + 1} on this machine, which has {gpus} GPU{"s" * (gpus > 1)} for one process '
            f'each. Ask for {gpus}, or make more visible, {visible}.')


def _slurm_environment() -> None:
    """Tell torch what Slurm calls by other names; mmengine does so after it has looked for GPUs."""
    nodes = subprocess.run(
        ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']], capture_output=True, text=True, check=True)
    os.environ.setdefault('MASTER_ADDR', nodes.stdout.split()[0])
    os.environ.setdefault('MASTER_PORT', '29500')
    for name, slurm_name in (('RANK', 'SLURM_PROCID'), ('LOCAL_RANK', 'SLURM_LOCALID'), ('WORLD_SIZE', 'SLURM_NTASKS')):
        os.environ[name] = os.environ[slurm_name]
