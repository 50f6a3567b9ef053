"""Faster ways to compute the same training: in bfloat16, in channels-last memory, compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from overhaul.engine.runner import bare_model
from overhaul.method.memory_format import give_operators_plain_maps
from overhaul.registry import HOOKS, OPTIM_WRAPPERS, is_type, nearest, type_name

MODES = ('bfloat16', 'channels_last', 'compile')


def turn_on(cfg: Config, modes: Collection[str]) -> None:
    """Edit a training config so that it trains in ``modes``, any of :data:`MODES`; none of them is plain float32.

    Raises:
        ValueError: If there is no such mode; if the config has an ``optim_wrapper`` of its own, which bfloat16 would
            replace.
    """
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f'There is no mode "{mode}". Nearest: {nearest(mode, MODES)}.')
    if 'bfloat16' in modes:
        if 'type' in cfg.optim_wrapper and not is_type(cfg.optim_wrapper, 'mmengine.OptimWrapper'):
            raise ValueError(
                f'The config has an optim_wrapper of type "{type_name(cfg.optim_wrapper)}", in whose place bfloat16 '
                'would put another. Leave bfloat16 (--amp) out, or take the type out of the config.')
        cfg.optim_wrapper.type = 'overhaul.Bfloat16OptimWrapper'
    hooks = {'channels_last': 'overhaul.ChannelsLastHook', 'compile': 'overhaul.CompileHook'}
    cfg.custom_hooks = [
        *cfg.get('custom_hooks', []), *(dict(type=hook) for mode, hook in hooks.items() if mode in modes)]


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass of teacher, student and connectors under bfloat16 autocast, on GPU or CPU.

    Weights, their updates and the losses stay float32. bfloat16 has the range of float32, so no loss is scaled.
    mmengine's AmpOptimWrapper, which has float16 and scales, refuses the CPU. Takes the arguments of ``OptimWrapper``.

    Raises:
        ValueError: If the model is on a GPU that has no bfloat16.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        weight = self.optimizer.param_groups[0]['params'][0]
        if weight.device.type == 'cuda' and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(
                f'The {torch.cuda.get_device_name()} does not compute in bfloat16. Train in float32, or in float16: '
                'optim_wrapper.type=AmpOptimWrapper.')

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast around the forward pass."""
        device = next(model.parameters()).device.type  # which need not be what the machine has
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps the convolutions of student, connectors and teacher in channels-last memory, and so their features."""

    priority = 'VERY_HIGH'  # before the model is copied, as EMA does, or resumed

    def before_run(self, runner: Runner) -> None:
        """Convert the weights; features follow."""
        model = bare_model(runner).to(memory_format=torch.channels_last)
        give_operators_plain_maps(model)


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the losses of a training step, forward and backward, with ``torch.compile``.

    Data preparation, update and validation are not compiled. The first step takes a minute or more.
    """

    priority = 'VERY_LOW'  # after the hooks that try a batch, and find out what cannot be asked in a compiled step

    def before_train(self, runner: Runner) -> None:
        """Compile."""
        compile_losses(bare_model(runner))


def compile_losses(model: nn.Module) -> None:
    """Compile ``model.loss``.

    mmengine's own ``compile=True`` compiles the whole ``train_step``. It takes the optimizer in, which is then compiled
    anew for each learning rate, and breaks off in the data preprocessor.

    Raises:
        ValueError: If the compiler that torch needs for the device is not there.
    """
    if next(model.parameters()).device.type == 'cpu':
        language, variable, compilers = 'C++', 'CXX', ('g++', 'c++', 'clang++', 'cl')
    else:  # Triton builds what launches its kernels
        language, variable, compilers = 'C', 'CC', ('gcc', 'clang')
    if not any(map(shutil.which, (os.environ.get(variable, compilers[0]), *compilers))):
        raise ValueError(
            f'torch compiles with a {language} compiler, and finds none. Install one, as {compilers[0]}, or name it in '
            f'{variable}; or leave --compile out.')
    model.loss = torch.compile(model.loss)
