"""A model written as an ONNX graph, and compared with what onnxruntime makes of it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from overhaul.tasks import Task
from overhaul.whole import write_whole

_TOLERANCE = 1e-4
# What a graph for any size is written with, and checked on.
_ANY_SIZES = ((128, 160), (96, 224))


class OnnxGraph:
    """The graph of a model from normalised images (N, C, H, W) to what its task gives, see :meth:`Task.graph`.

    Any N will do, and any H and W if the task says so; else the graph is for one size. It begins after the data
    preprocessor.

    Args:
        task: That of the model, which is on the CPU.
        size: Height and width of the images, where the graph is for one size.

    Raises:
        ModuleNotFoundError: If the packages that write ONNX are not installed.
        ValueError: If the task knows no graph, or no size is given where one is needed.
    """

    def __init__(self, task: Task, size: tuple[int, int] | None = None) -> None:
        _require_onnx()
        graph = task.graph()
        if graph is None:
            raise ValueError(
                f'What an ONNX graph of the {type(task.model).__name__} would give is not known. Leave --onnx out; the '
                'weights and the config do without. A task of your own can tell: docs/tasks.md.')
        if not graph.any_size and size is None:
            raise ValueError(
                f'The graph of the {type(task.model).__name__} is for one size of images, and the config does not say '
                'which. Add --size HEIGHT WIDTH.')
        self.graph, self.task, self.model = graph, task, type(task.model).__name__
        self.sizes = _ANY_SIZES if graph.any_size else (tuple(size), tuple(size))

    def write(self, path: str | Path) -> str:
        """Write the graph, all in one file of up to 2 GB, and return what goes in and out of it, in words.

        Where onnxruntime is installed it is compared with the model, on random images of two batch sizes and, where any
        size will do, two sizes.

        Raises:
            ValueError: If the model cannot be written as a graph, or if the graph gives something else. Nothing is
                written.
        """
        errors: list[float] = []

        def write(draft: Path) -> None:
            self._trace(draft)
            if importlib.util.find_spec('onnxruntime') is not None:
                errors.append(self._largest_error(draft))

        write_whole(Path(path), write)
        entering = self.task.input_shape(('H', 'W') if self.graph.any_size else self.sizes[0])
        outputs = ', '.join(f'{name} {shape}' for name, shape in self.graph.outputs.items())
        checked = (f'in onnxruntime within {errors[0]:.1g} of the model' if errors else
                   'not checked, since onnxruntime is not installed')
        return (f'images (N, {", ".join(map(str, entering))}) to {outputs}, {checked}. Normalise the images as the '
                'data_preprocessor of the config does')

    def _trace(self, path: Path) -> None:
        dynamic = torch.export.Dim.DYNAMIC
        free = {0: dynamic, 2: dynamic, 3: dynamic} if self.graph.any_size else {0: dynamic}
        images = torch.randn(2, *self.task.input_shape(self.sizes[0]))
        module = _Unnamed(self.graph.module).eval()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter('ignore')  # of torch about itself
                given = module(images)
                count = len(given) if isinstance(given, tuple) else 1
                if count == len(self.graph.outputs):
                    torch.onnx.export(
                        module, (images,), path, dynamo=True, dynamic_shapes=dict(images=free),
                        input_names=['images'], output_names=list(self.graph.outputs), external_data=False,
                        verbose=False)
        except Exception as failure:  # whatever a model does that a graph cannot
            cause = failure.__cause__ or failure  # torch wraps it in advice in colours
            raise ValueError(
                f'torch.onnx cannot write the {self.model} as a graph ({type(cause).__name__}: '
                f'{str(cause).strip().splitlines()[0]}). Leave --onnx out; the weights and the config do without.'
            ) from failure
        if count != len(self.graph.outputs):  # each would be taken for another
            raise ValueError(
                f'Out of the {self.model} come {count} tensors, and of these {len(self.graph.outputs)} would be '
                f'expected: {", ".join(self.graph.outputs)}. What is what is not known, and no graph is written. Leave '
                '--onnx out, or give the model a task of your own: docs/tasks.md.')

    def _largest_error(self, path: Path) -> float:
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        names, largest = list(self.graph.outputs), 0.0
        for count, size in zip((1, 3), self.sizes):
            images = torch.randn(count, *self.task.input_shape(size))
            with torch.no_grad():
                outputs = self.graph.module(images)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for name, expected, array in zip(names, outputs, session.run(names, dict(images=images.numpy()))):
                given = torch.from_numpy(array)
                error = (given - expected).abs().max().item() if given.shape == expected.shape else float('inf')
                if not error <= _TOLERANCE * max(1.0, expected.abs().max().item()):
                    raise ValueError(
                        f'The graph that torch.onnx wrote is not the model: for images {tuple(images.shape)} its '
                        f'{name} {tuple(given.shape)} differ by up to {error:.2g} from {tuple(expected.shape)}. It was '
                        'deleted. Leave --onnx out, or try another version of torch.')
                largest = max(largest, error)
        return largest


class _Unnamed(nn.Module):
    """A module that can be printed, as torch does: to print mmseg's VPDDepthHead raises an error."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __repr__(self) -> str:
        return 'model'

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.module(images)


def _require_onnx() -> None:
    missing = [name for name in ('onnx', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'Without {" and ".join(missing)} torch cannot write ONNX. pip install "overhaul[onnx]" brings what is '
            'missing, and onnxruntime for the check.')
    if torch.__version__ < (2, 7):  # 2.6 writes graphs with onnxscript 0.2 alone
        raise ValueError(f'To write ONNX, torch 2.7 or newer is needed, and this is {torch.__version__}. Update torch.')
