"""A trained student as plain mmpretrain and mmseg take it: weights, a config, and an ONNX graph where one is wanted."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from overhaul import __version__
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.settings import read_config, student_only
from overhaul.files.weights import load_weights
from overhaul.registry import DATASETS, MODELS, build, is_type, short_name, type_name

# Types of this package that a student's answers do not depend on, and what plain mmpretrain and mmseg have for them.
_PLAIN = {
    'overhaul.CIFAR100': dict(type='mmpretrain.CIFAR100'),
    'overhaul.CropFlipPreprocessor': dict(type='mmpretrain.ClsDataPreprocessor'),
    'overhaul.CrossEntropyPerImage': dict(type='mmseg.CrossEntropyLoss', avg_non_ignore=True),
    'overhaul.ImageNet': dict(type='mmpretrain.ImageNet'),
    'overhaul.PascalVOC': dict(type='mmseg.PascalVOCDataset'),
}
# What an exported config does without: mmseg's measure at the size of the image file; weights to begin training with.
_LEFT_OUT = ('overhaul.EvaluateAtInputSize', 'mmengine.Pretrained')

_MARK = '# Exported by Overhaul'
_TOLERANCE = 1e-4
_SEGMENTATION_SIZES = ((128, 160), (96, 224))


def export_student(
        config: str, checkpoint: str, out: str, onnx: str | None = None, size: tuple[int, int] | None = None) -> str:
    """Write the student of a checkpoint, with its config, to be loaded without this package where that is possible.

    ``out`` gets ``{'state_dict', 'meta'}``, which ``torch.load(weights_only=True)`` reads; ``meta['dataset_meta']`` has
    the classes, and for segmentation the palette, as lists. The config goes beside it, as ``out`` with ``.py``:
    :func:`student_config`. A file is written whole or not at all.

    Args:
        config: The config that the checkpoint was trained with, as :func:`read_config` takes it: of
            a distillation, or a plain one of mmpretrain or mmseg.
        checkpoint: Of a distiller or of the student alone, as :func:`read_checkpoint` takes it.
        out: The file to write, ``*.pth``.
        onnx: The graph to write, ``*.onnx``; see :func:`export_onnx`.
        size: Height and width of a classifier's images in the graph. Default: ``model.input_size`` of the config.

    Returns:
        What was written, how it is loaded, and whether this package is needed for that; in a few lines.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_config` and
            :func:`load_weights`.
        ValueError: If a file to write is one of those read, a folder, or a config that this function did not write; if
            its name ends otherwise than above, or its folder cannot be; for a size below 1; as :func:`export_onnx`.
        ModuleNotFoundError: As :func:`export_onnx`.
    """
    weights, settings = Path(out), Path(out).with_suffix('.py')
    _check_paths(config, checkpoint, weights, settings, onnx)
    if size is not None and min(size) < 1:
        raise ValueError('--size is {} {}. Give a height and a width of 1 or more.'.format(*size))
    cfg = read_config(config)
    plain = student_config(cfg)
    model = build(copy.deepcopy(plain.model), 'student', scope=plain.default_scope).eval()  # building edits a config
    size = size or cfg.model.get('input_size')
    segmentation = hasattr(model, 'decode_head')
    if onnx:
        _require_onnx()
        if not segmentation and size is None:
            raise ValueError(
                f'The graph of a classifier is for one size of images, and "{config}" does not say which. Add '
                '--size HEIGHT WIDTH.')
    load_weights(model, checkpoint)
    meta = dict(overhaul_version=__version__, dataset_meta=_dataset_meta(read_checkpoint(checkpoint), cfg))

    of_overhaul = set(MODELS.module_dict.values())  # by class: another package may have one of the same name
    own = sorted({type(module).__name__ for module in model.modules() if type(module) in of_overhaul})
    if own:
        imports = plain.get('custom_imports', {}).get('imports', [])
        plain.custom_imports = dict(imports=[*imports, 'overhaul.registry'], allow_failed_imports=False)
    load = (f"mmseg.apis.init_model('{settings}', '{weights}')" if segmentation else
            f"mmpretrain.get_model('{settings}', pretrained='{weights}')")
    text = f'{_MARK} {__version__} from {Path(config).name}. Its weights: {weights.name}.\n\n{plain.pretty_text}'

    weights.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    _write(weights, lambda path: torch.save(dict(state_dict=state, meta=meta), path))
    _write(settings, lambda path: path.write_text(text))
    classes = meta['dataset_meta'].get('classes', [])
    report = [
        f'{weights}: {len(state)} tensors of the {type(model).__name__}, with the names of {len(classes)} classes',
        f'{settings}: its config']
    if onnx:
        report.append(f'{onnx}: {_write_onnx(model, Path(onnx), size)}')
    report += [
        f'To load: {load}',
        f'Overhaul must be installed there: {", ".join(own)} {"is" if len(own) == 1 else "are"} of this package.'
        if own else 'Overhaul need not be installed there.']
    return '\n'.join(report)


def student_config(cfg: Config) -> Config:
    """Return the config of the student of ``cfg`` alone: the model with its data preprocessor, and its test data.

    Of what belongs to training nothing is left. A dataset or loss of this package is replaced with that of mmpretrain
    or mmseg that it extends; those that have none there, such as ``overhaul.Digits``, stay, and testing on them, not
    loading the model, needs this package.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    model = student_only(cfg) if 'student' in cfg.model else cfg.model
    if 'data_preprocessor' in cfg:
        model = {'data_preprocessor': cfg.data_preprocessor, **model}
    plain = dict(default_scope=scope, model=model)
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader:
        # mmseg looks for the pipeline here, mmpretrain in the loader.
        plain['test_pipeline'] = loader.dataset.get('pipeline', [])
        plain['test_dataloader'] = loader
        plain['test_evaluator'] = cfg.get('test_evaluator') or cfg.get('val_evaluator')
        plain['test_cfg'] = cfg.get('test_cfg') or {}
    imports = cfg.get('custom_imports', {}).get('imports', [])
    imports = [name for name in ([imports] if isinstance(imports, str) else imports) if not name.startswith('overhaul')]
    if imports:
        plain['custom_imports'] = dict(cfg.custom_imports, imports=imports)
    return Config(_plain(plain, scope))


def export_onnx(model: nn.Module, path: str | Path, size: tuple[int, int] | None = None) -> float | None:
    """Write the graph of ``model`` from normalised images (N, 3, H, W) to logits, (N, classes) or (N, classes, H, W).

    N is free, and so are H and W for segmentation; a classifier has those of ``size``. The graph begins after the data
    preprocessor, and is a segmentor's ``mode='whole'``, resized to the image. All is in one file of up to 2 GB.

    Args:
        model: An mmpretrain classifier or an mmseg segmentor on the CPU.
        path: The file to write.
        size: Height and width of a classifier's images.

    Returns:
        The largest absolute difference between the logits of onnxruntime and of ``model``, on random images of two
        batch sizes and, for segmentation, two sizes. None where onnxruntime is not installed.

    Raises:
        ModuleNotFoundError: If the packages that write ONNX are not installed.
        ValueError: If the model cannot be written as a graph, or if the graph gives other logits. Nothing is written.
    """
    _require_onnx()
    logits = _Logits(model).eval()
    sizes = _SEGMENTATION_SIZES if logits.segmentation else (tuple(size), tuple(size))
    dynamic = torch.export.Dim.DYNAMIC
    axes = {0: dynamic, 2: dynamic, 3: dynamic} if logits.segmentation else {0: dynamic}
    error = None

    def write(draft: Path) -> None:
        nonlocal error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of torch about itself
                torch.onnx.export(
                    logits, (torch.randn(2, 3, *sizes[0]),), draft, dynamo=True, dynamic_shapes=dict(images=axes),
                    input_names=['images'], output_names=['logits'], external_data=False, verbose=False)
        except Exception as failure:  # whatever a model does that a graph cannot
            cause = failure.__cause__ or failure  # torch wraps it in advice in colours
            raise ValueError(
                f'torch.onnx cannot write the {type(model).__name__} as a graph ({type(cause).__name__}: '
                f'{str(cause).strip().splitlines()[0]}). Leave --onnx out; the weights and the config do without.'
            ) from failure
        if importlib.util.find_spec('onnxruntime') is not None:
            error = _largest_error(draft, logits, [(1, *sizes[0]), (3, *sizes[1])])

    _write(Path(path), write)
    return error


class _Logits(nn.Module):
    """From normalised images (N, 3, H, W) to logits: (N, classes), or (N, classes, H, W) for segmentation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.segmentation = hasattr(model, 'decode_head')

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images, mode='tensor')
        if not self.segmentation:
            return logits
        return nn.functional.interpolate(
            logits, size=images.shape[2:], mode='bilinear', align_corners=self.model.align_corners)


def _largest_error(path: Path, logits: nn.Module, shapes: list[tuple[int, int, int]]) -> float:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    largest = 0.0
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = logits(images)
        given = torch.from_numpy(session.run(None, dict(images=images.numpy()))[0])
        error = (given - expected).abs().max().item() if given.shape == expected.shape else float('inf')
        if not error <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            raise ValueError(
                f'The graph that torch.onnx wrote is not the model: for images {tuple(images.shape)} its logits '
                f'{tuple(given.shape)} differ by up to {error:.2g} from {tuple(expected.shape)}. It was deleted. Leave '
                '--onnx out, or try another version of torch.')
        largest = max(largest, error)
    return largest


def _write_onnx(model: nn.Module, path: Path, size: tuple[int, int] | None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    error = export_onnx(model, path, size)
    shapes = ('images (N, 3, H, W) to logits (N, classes, H, W)' if hasattr(model, 'decode_head') else
              f'images (N, 3, {size[0]}, {size[1]}) to logits (N, classes)')
    checked = ('not checked, since onnxruntime is not installed' if error is None else
               f'in onnxruntime within {error:.1g} of the model')
    return f'{shapes}, {checked}. Normalise the images as the data_preprocessor of the config does'


def _require_onnx() -> None:
    missing = [name for name in ('onnx', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'Without {" and ".join(missing)} torch cannot write ONNX. pip install "overhaul[onnx]" brings what is '
            'missing, and onnxruntime for the check.')
    if not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise ValueError(f'To write ONNX, torch 2.6 or newer is needed, and this is {torch.__version__}. Update torch.')


def _check_paths(config: str, checkpoint: str, weights: Path, settings: Path, onnx: str | None) -> None:
    graphs = [Path(onnx)] if onnx else []
    for path, suffix in [(weights, '.pth'), *((graph, '.onnx') for graph in graphs)]:
        if path.suffix != suffix:
            raise ValueError(f'"{path}" does not end in {suffix}. Let OUT.pth end in .pth, and OUT.onnx in .onnx.')
    for output in [weights, settings, *graphs]:
        if output.resolve() in (Path(config).resolve(), Path(checkpoint).expanduser().resolve()):
            raise ValueError(f'"{output}" would be written over, and it is read from. Give OUT.pth another name.')
        if output.is_dir():
            raise ValueError(f'"{output}" is a folder, and is to be a file. Give OUT.pth or OUT.onnx another name.')
        parent = next(parent for parent in output.parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise ValueError(
                f'"{output}" cannot be written, for "{parent}" is no folder that you may write to. Name another one.')
    if settings.exists() and not settings.read_text().startswith(_MARK):
        raise ValueError(
            f'The config would be written over "{settings}", which is no exported one. Give OUT.pth another name.')


def _plain(part: object, scope: str) -> object:
    """Return ``part`` of a config without what an exported one does without, types of ``scope`` without their prefix.

    mmseg finds its own transforms and models in a config by those short names.
    """
    if isinstance(part, dict):
        part = {**part, **_PLAIN.get(type_name(part), {})}
        name = type_name(part)
        if name is not None:
            part['type'] = short_name(name, scope)
        return {key: _plain(value, scope) for key, value in part.items() if not is_type(value, *_LEFT_OUT)}
    if isinstance(part, list | tuple):
        return type(part)(_plain(child, scope) for child in part if not is_type(child, *_LEFT_OUT))
    return part


def _dataset_meta(checkpoint: dict, cfg: Config) -> dict[str, list]:
    """Return the classes and the palette that the model was trained with, as lists; what is not known is not there."""
    meta = checkpoint.get('meta')
    known = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if not known:
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
        dataset = loader.get('dataset', {})
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            cls = registry.get(type_name(dataset)) if 'type' in dataset else None
        known = {**getattr(cls, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    known = {key: known[key] for key in ('classes', 'palette') if known.get(key) is not None}
    return json.loads(json.dumps(known, default=lambda array: array.tolist()))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and move it there once it is whole."""
    with tempfile.TemporaryDirectory(prefix='.export_', dir=path.parent) as folder:
        draft = Path(folder, path.name)
        write(draft)
        draft.replace(path)
