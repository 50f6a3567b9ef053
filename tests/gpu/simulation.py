"""Trainings as on a GPU, without one: every tensor says that it is on cuda:0, and has no content.

    python tests/gpu/simulation.py CONFIG...

Runner, hooks, losses, backward pass, update and validation are the real ones, on random data. Prints a line of JSON for
each config: ``waits``, what waits for the GPU in the step, and how often; ``not_on_gpu``, the names of weights
that are elsewhere; or ``failed``, the operation that mixes devices and ``where`` it is. What it cannot see: values,
kernels, NCCL and torch.compile.
"""

import collections
import contextlib
import json
import sys
import tempfile
import traceback
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # which dislikes what is changed below
from torch._subclasses import fake_tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]


def pretend() -> None:
    """Let there be a GPU. To be called before mmengine asks for one, at its import."""
    answers = dict(
        is_available=True, device_count=1, current_device=0, is_bf16_supported=True, get_device_name='Simulated GPU',
        max_memory_allocated=0, get_rng_state=torch.zeros(16, dtype=torch.uint8), is_initialized=False,
        is_current_stream_capturing=False,
        synchronize=None, set_device=None, manual_seed=None, manual_seed_all=None, set_rng_state=None,
        reset_peak_memory_stats=None, empty_cache=None, _lazy_init=None, _lazy_call=None)
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    fake_tensor.init_gpu_context, fake_tensor.FakeTensorMode.avoid_device_init = lambda device: None, True
    # These tensors have no content to be rid of, and do not let go of their place.
    to = torch.nn.Module.to
    torch.nn.Module.to = lambda module, *where, **how: module if where == ('meta', ) else to(module, *where, **how)
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    torch.autograd.backward = torch.no_grad()(lambda tensors, *_, **__: walk(
        [tensors] if isinstance(tensors, torch.Tensor) else tensors) and None)
    torch.autograd.grad = torch.no_grad()(lambda outputs, inputs, *_, **__: walk(
        [outputs] if isinstance(outputs, torch.Tensor) else outputs, inputs))


def walk(outputs, inputs=()):
    """Do what autograd's engine does, which asks for a real GPU: run the nodes from ``outputs`` back."""
    edges, wanted = [get_gradient_edge(output) for output in outputs], [get_gradient_edge(leaf) for leaf in inputs]
    buffers, needed, left, seen = {}, collections.Counter(), [edge.node for edge in edges], set()
    while left:
        node = left.pop()
        following = [other for other, _ in node.next_functions if other is not None] if node not in seen else []
        seen.add(node)
        needed.update(following)
        left += following

    def give(node, index, gradient):
        meta, slot = node._input_metadata[index], buffers.setdefault(node, {})
        gradient = gradient.to(meta.dtype).sum_to_size(meta.shape)
        slot[index] = slot[index] + gradient if index in slot else gradient

    for edge, output in zip(edges, outputs):
        give(edge.node, edge.output_nr, torch.ones_like(output))
    ready = [node for node in dict.fromkeys(edge.node for edge in edges) if not needed[node]]
    while ready:
        node, given = ready.pop(), ()
        if node in buffers and not (inputs and type(node).__name__ == 'AccumulateGrad'):
            run = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
            given = run(*(buffers[node].get(index) for index in range(len(node._input_metadata))))
        given = given if isinstance(given, tuple) else (given,)
        given = given[max(0, len(given) - len(node.next_functions)):]  # what comes first was no tensor
        for i, (following, index) in enumerate(node.next_functions):
            if following is not None:
                if i < len(given) and given[i] is not None:
                    give(following, index, given[i])
                needed[following] -= 1
                ready += [following] * (not needed[following])
    return tuple(buffers.get(edge.node, {}).get(edge.output_nr) for edge in wanted)


def on_gpu(value):
    return isinstance(value, torch.Tensor) and value.device.type == 'cuda'


def callers():
    """Yield the code that runs now, without that of torch and of this file, what was called last first."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if '/torch/' not in frame.f_code.co_filename and frame.f_code.co_filename != __file__:
            yield frame.f_code


class Watch(TorchDispatchMode):
    """Notes what waits for the GPU, and answers what cannot be known without values."""

    def __init__(self):
        super().__init__()
        self.step, self.waits = 0, collections.Counter()

    def note(self, what):
        last = next(callers())
        file = last.co_filename.rpartition('site-packages/')[2].removeprefix(f'{ROOT}/')
        self.waits[self.step, f'{what} in {file}, {last.co_name}'] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == '_local_scalar_dense':
            if on_gpu(args[0]):
                self.note('item, bool or float')
            # What CalibrateHook asks about is not known yet; all else that is asked is in order.
            unknown = any(code.co_filename.endswith('hooks/calibrate.py') for code in islice(callers(), 2))
            return unknown if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 0
        if name in ('_to_copy', 'copy_'):
            source = args[1] if name == 'copy_' else args[0]
            target = args[0].device if name == 'copy_' else torch.device(kwargs.get('device') or source.device)
            if on_gpu(source) != (target.type == 'cuda'):
                self.note('GPU to CPU' if on_gpu(source) else 'CPU to GPU')
        if name in ('index', 'index_put_', 'index_put'):
            indices = []
            for index in args[1]:
                mask = index is not None and index.dtype in (torch.bool, torch.uint8)
                if mask and on_gpu(index):
                    self.note('index by mask')
                indices += [torch.zeros(index.numel(), dtype=torch.long, device=index.device)] * index.dim() if mask \
                    else [index]  # a mask chooses everything
            args = (args[0], indices, *args[2:])
        return func(*args, **kwargs)


class Values(TorchFunctionMode):
    """Gives ones where Python or numpy reads the memory of a tensor that has none."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')
        if name in ('numpy', 'tolist', '__array__') and isinstance(args[0], fake_tensor.FakeTensor):
            if on_gpu(args[0]):
                if name != 'tolist':
                    raise TypeError(f'{name}() of a tensor on the GPU')
                self.watch.note(name)
            ones = np.ones(tuple(args[0].shape), str(args[0].dtype).removeprefix('torch.'))
            return ones.tolist() if name == 'tolist' else ones
        return func(*args, **(kwargs or {}))


def simulate(config):
    """Train a step of ``config`` and validate; return what was found, see above."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from overhaul.engine import dry_run, exact_resume
    from overhaul.files.settings import read_config

    class Count(Hook):
        priority = 'VERY_HIGH'

        def before_train_iter(self, runner, *_, **__):
            watch.step = runner.iter + 1

        def before_val(self, runner):
            watch.step = 'validation'

    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        class OnGPURunner(Runner):
            def wrap_model(self, *arguments):
                for mode in (fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), watch, Values(watch)):
                    stack.enter_context(mode)
                return super().wrap_model(*arguments)

        cfg = read_config(config)
        cfg.train_dataloader.batch_size = 2
        cfg.model.input_size = (64, 64)
        health, dry_run._STEPS = cfg.default_hooks.health, 1
        dry_run.prepare(cfg)
        cfg.default_hooks.summary.validate_teacher = False
        # What has no content cannot be saved.
        cfg.default_hooks.update(health=health, checkpoint=None)
        cfg.update(work_dir=folder, log_level='ERROR', experiment_name=Path(config).stem, launcher='none')
        try:
            runner = OnGPURunner.from_cfg(cfg)
            exact_resume.prepare(runner)
            runner.register_hook(Count())
            runner.train()
        except Exception as error:
            where = [f'{f.filename}:{f.lineno} {f.line}' for f in traceback.extract_tb(error.__traceback__)
                     if '/torch/' not in f.filename and f.filename != __file__]
            return dict(failed=f'{error}', where=where[-4:])
    return dict(
        waits={what: count for (step, what), count in watch.waits.items() if step == 1},
        not_on_gpu=[name for part in (runner.model, getattr(runner.model, 'teacher', runner.model))
                    for name, value in [*part.named_parameters(), *part.named_buffers()] if not on_gpu(value)])


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    pretend()
    # No thread beside this one draws, for the modes above are those of a thread.
    from overhaul.engine import runner as engine_runner
    from overhaul.engine import same_start, same_training
    from overhaul.method import distiller
    engine_runner.progress = lambda items, *_: items
    distiller.checksum = same_start.checksum = same_training.checksum = lambda *_: 'of no content'
    for config in sys.argv[1:]:
        print(json.dumps(dict(config=Path(config).stem, **simulate(config))), flush=True)
