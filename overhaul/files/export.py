"""A trained student as plain mmpretrain and mmseg take it: weights, a config, and an ONNX graph where one is wanted."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from overhaul import __version__
from overhaul.files.checkpoints import read_checkpoint
from overhaul.files.onnx_graph import OnnxGraph
from overhaul.files.parts import build_plain, plain_model, task_name
from overhaul.files.settings import read_config
from overhaul.files.weights import load_weights
from overhaul.registry import DATASETS, MODELS, build, counted, is_type, short_name, type_name
from overhaul.tasks import name_task, task_of
from overhaul.whole import write_whole

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


def export_student(
        config: str, checkpoint: str, out: str, onnx: str | None = None, size: tuple[int, int] | None = None) -> str:
    """Write the student of a checkpoint, with its config, to be loaded without this package where that is possible.

    ``out`` gets ``{'state_dict', 'meta'}``, which ``torch.load(weights_only=True)`` reads; ``meta['dataset_meta']`` has
    the metainfo of the data, as the classes, in lists and dicts. The config goes beside it, as ``out`` with ``.py``:
    :func:`student_config`. A file is written whole or not at all.

    Args:
        config: The config that the checkpoint was trained with, as :func:`read_config` takes it: of a distillation, or
            a plain one of mmpretrain or mmseg.
        checkpoint: Of a distiller or of the student alone, as :func:`read_checkpoint` takes it.
        out: The file to write, ``*.pth``.
        onnx: The graph to write, ``*.onnx``; see :class:`OnnxGraph`.
        size: Height and width of the images of a graph that is for one size. Default: ``model.input_size`` of the
            config.

    Returns:
        What was written, how it is loaded, and whether this package is needed for that; in a few lines.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_config` and :func:`load_weights`.
        ValueError: If a file to write is one of those read, a folder, or a config that this function did not write; if
            its name ends otherwise than above, or its folder cannot be; for a size below 1; as :class:`OnnxGraph`.
        ModuleNotFoundError: As :class:`OnnxGraph`.
    """
    weights, settings = Path(out), Path(out).with_suffix('.py')
    _check_paths(config, checkpoint, weights, settings, onnx)
    if size is not None and min(size) < 1:
        raise ValueError('--size is {} {}. Give a height and a width of 1 or more.'.format(*size))
    cfg = read_config(config)
    plain = student_config(cfg)
    model = build(copy.deepcopy(plain.model), 'student', scope=plain.default_scope).eval()  # building edits a config
    name_task(model, task_name(cfg))
    task = task_of(model)
    graph = OnnxGraph(task, size or cfg.model.get('input_size')) if onnx else None
    load_weights(model, checkpoint)
    own = _of_this_package(model)
    if own:
        imports = plain.get('custom_imports', {}).get('imports', [])
        plain.custom_imports = dict(imports=[*imports, 'overhaul.registry'], allow_failed_imports=False)

    report = [
        _write_weights(model, weights, _dataset_meta(read_checkpoint(checkpoint), cfg)),
        _write_config(plain, settings, f'{_MARK} {__version__} from {Path(config).name}. Its weights: {weights.name}.')]
    if graph:
        report.append(f'{onnx}: {graph.write(onnx)}')
    needed = (f'must be installed there: {", ".join(own)} {"is" if len(own) == 1 else "are"} of this package.' if own
              else 'need not be installed there.')
    return '\n'.join([*report, f'To load: {task.loading(str(settings), str(weights))}', f'Overhaul {needed}'])


def export_backbone(config: str, checkpoint: str, out: str) -> str:
    """Write the backbone of a checkpoint's student, for any pipeline that has the same backbone to begin with.

    Its tensors are called ``backbone.*``, also those of a network that is all in one piece, as timm's.

    Args:
        config, checkpoint, out: As of :func:`export_student`; no config is written.

    Returns:
        What was written, and how it is loaded; in a few lines.

    Raises:
        FileNotFoundError, ValueError: As :func:`export_student`; and if the student has no backbone.
    """
    weights = Path(out)
    _check_paths(config, checkpoint, weights, weights.with_suffix('.py'), None)
    cfg = read_config(config)
    model = build_plain(cfg)
    load_weights(model, checkpoint)
    trunk = task_of(model).trunk
    if not trunk:
        raise ValueError(f'The {type(model).__name__} has no backbone to write. Leave --backbone out.')
    backbone = model.get_submodule(trunk)
    report = _write_weights(nn.ModuleDict(dict(backbone=backbone)), weights, {}, type(backbone).__name__)
    return (f"{report}\nTo begin with it: init_cfg=dict(type='Pretrained', checkpoint='{weights}', prefix='backbone.') "
            f"of the backbone in any config, or load_from='{weights}'.")


def _of_this_package(model: nn.Module) -> list[str]:
    """Return the names of the classes of this package that ``model`` is made of."""
    registered = set(MODELS.module_dict.values())  # by class: another package may have one of the same name
    return sorted({type(module).__name__ for module in model.modules() if type(module) in registered})


def _write_weights(model: nn.Module, path: Path, dataset_meta: dict, name: str | None = None) -> str:
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    content = dict(state_dict=state, meta=dict(overhaul_version=__version__, dataset_meta=dataset_meta))
    write_whole(path, lambda draft: torch.save(content, draft))
    classes = dataset_meta.get('classes', [])
    known = f', with the names of {counted(len(classes), "class", "classes")}' if classes else ''
    return f'{path}: {counted(len(state), "tensor")} of the {name or type(model).__name__}{known}'


def _write_config(plain: Config, path: Path, first_line: str) -> str:
    write_whole(path, lambda draft: draft.write_text(f'{first_line}\n\n{plain.pretty_text}'))
    return f'{path}: its config'


def student_config(cfg: Config) -> Config:
    """Return the config of the student of ``cfg`` alone: the model with its data preprocessor, and its test data.

    Of what belongs to training nothing is left. A dataset or loss of this package is replaced with that of mmpretrain
    or mmseg that it extends; those that have none there, such as ``overhaul.Digits``, stay, and testing on them, not
    loading the model, needs this package.
    """
    model = plain_model(cfg)
    scope = model.pop('_scope_')
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


def _dataset_meta(checkpoint: dict, cfg: Config) -> dict:
    """Return what is known of the data that the model was trained with, as their classes, in lists and dicts."""
    meta = checkpoint.get('meta')
    known = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if not known:
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
        dataset = loader.get('dataset', {})
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            cls = registry.get(type_name(dataset)) if 'type' in dataset else None
        known = {**getattr(cls, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    known = {key: value for key, value in known.items() if value is not None}
    return json.loads(json.dumps(known, default=lambda value: getattr(value, 'tolist', value.__str__)()))
