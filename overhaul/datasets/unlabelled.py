"""Images without labels beside those with labels, in the same batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from torch.utils.data import DataLoader, Dataset

from overhaul.datasets.presence import TellsUnreadableImages, check_images
from overhaul.registry import DATASETS, TRANSFORMS, counted
from overhaul.tasks import mark_unlabelled, stand_in

_ENDINGS = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
# What a dataset says of the image itself; all else may be a label, or tell one.
_OF_THE_IMAGE = (
    'img', 'img_path', 'img_id', 'img_shape', 'ori_shape', 'height', 'width', 'sample_idx')
_MOST_COMPARED = 1000, 100_000  # images with labels, and without


@DATASETS.register_module()
class WithUnlabelled(Dataset):
    """A dataset whose batches have, behind its own images, others without labels.

    A batch of n images, by whatever sampler, becomes one of ``n + n * per_image``: those with labels first. Within a
    batch no image without labels comes twice, unless there are fewer than it takes. Its number of images and all else
    that is asked of it are those of the images with labels.

    What an unlabelled dataset knows of labels is taken away before its pipeline runs, and again from what comes out:
    its data samples have ``metainfo``, with ``unlabelled=True``, and empty ``InstanceData``. ``OverhaulDistiller``
    takes the task's loss of the others alone.

    Args:
        dataset: The images with labels; a dataset or the config of one.
        unlabelled: Those without: a dataset, the config of one, or of an :class:`ImageFolder` where it has no type,
            or the path of a folder. One without a pipeline has that of ``dataset``.
        per_image: How many without labels a batch has for each image with labels.

    Raises:
        ValueError: If ``per_image`` is no whole number above 0, if there are no images, or if an item is no dict with
            ``inputs``.
    """

    def __init__(self, dataset: Dataset | dict, unlabelled: Dataset | dict | str, per_image: int = 1) -> None:
        if isinstance(per_image, bool) or not isinstance(per_image, int) or per_image < 1:
            raise ValueError(
                f'unlabelled has per_image={per_image!r}. Give the number of images without labels that a batch has '
                'for each one with labels, 1 or more.')
        if isinstance(unlabelled, str):
            unlabelled = dict(data_root=unlabelled)
        if isinstance(unlabelled, Mapping):
            unlabelled = DATASETS.build(_without_labels(
                {'type': 'overhaul.ImageFolder', **unlabelled} if _is_leaf(unlabelled) else unlabelled,
                dataset if isinstance(dataset, Mapping) else {}))
        self.labelled = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.unlabelled, self.per_image = unlabelled, per_image
        if not len(self.unlabelled):
            raise ValueError('The dataset of the images without labels is empty. Name one that has images.')
        print_log(
            f'{counted(len(self.unlabelled), "image")} without labels, in each batch {per_image} per labelled one.',
            'current')
        _tell_of_images_in_both(self.labelled, self.unlabelled)

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> object:
        return self.labelled[index]

    def __getitems__(self, indices: Sequence[int]) -> list:
        """Return a whole batch. Called by torch's data loader."""
        return [*(self[index] for index in indices), *self.beside(len(indices))]

    def beside(self, count: int) -> list[dict]:
        """Return the images without labels that belong beside ``count`` with labels, drawn by Python's generator."""
        known, wanted = range(len(self.unlabelled)), count * self.per_image
        whole, rest = divmod(wanted, len(known))
        return [self._read(index) for index in [*known] * whole + random.sample(known, rest)]

    def _read(self, index: int) -> dict:
        try:
            return _unlabelled(self.unlabelled[index])
        except KeyError as error:
            raise ValueError(
                f'A transform asks for {error} of an image without labels. Of those only the file, the pixels and the '
                'size are known, for anything else could be a label. Leave unlabelled out, or give it a dataset with a '
                'pipeline that does without.') from error
        except Exception as error:  # mmengine has no other for it
            if 'Cannot find valid image' not in str(error):
                raise
            raise ValueError(
                'A transform gives up every image without labels, as one does that looks for a box in what it cuts. '
                'Give unlabelled a pipeline of its own without that transform.') from error

    def __getattr__(self, name: str) -> object:
        if name == 'labelled':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.labelled, name)


@DATASETS.register_module()
class ImageFolder(TellsUnreadableImages, BaseDataset):
    """The images in a folder and the folders in it, without labels, in alphabetical order.

    As the dataset of a training it is one without a task: the distillation is all.

    Args:
        data_root: The folder.
        pipeline: Transforms, as in every OpenMMLab dataset. Where none of them reads a file, that is done first.
        **kwargs: Further arguments of mmengine's ``BaseDataset``, such as ``indices``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, or if one of them cannot be read.
    """

    def __init__(self, data_root: str = '', pipeline: Sequence[Any] = (), **kwargs: Any) -> None:
        super().__init__(data_root=data_root, pipeline=pipeline, **kwargs)
        transforms = self.pipeline.transforms
        if not any(isinstance(transform, LoadImageFromFile) for transform in transforms):
            transforms.insert(0, LoadImageFromFile())

    def prepare_data(self, idx: int) -> Any:
        """Return the item ``idx``, marked as one without labels. Called by the base class."""
        item = super().prepare_data(idx)
        return _unlabelled(item) if isinstance(item, Mapping) and 'inputs' in item else item

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per image. Called by the base class."""
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(f'There is no folder "{root}". Name the folder of the images as data_root.')
        files = sorted(path for path in root.rglob('*') if path.suffix.lower() in _ENDINGS)
        found = [dict(img_path=str(path), img_id=number) for number, path in enumerate(files)]
        check_images(found, self.data_root, f'Name a folder with images, which end in {", ".join(_ENDINGS)}.')
        return found


@TRANSFORMS.register_module()
class ForgetLabels(BaseTransform):
    """Leaves of what a dataset says only what is of the image itself: its file, its pixels, its size."""

    def transform(self, results: dict) -> dict:
        """Return that."""
        return {key: results[key] for key in _OF_THE_IMAGE if key in results}


@TRANSFORMS.register_module()
class BlankMask(BaseTransform):
    """Gives an image (H, W, C) a mask (H, W) of 255, no class, in the place of one from a file."""

    def transform(self, results: dict) -> dict:
        """Add ``gt_seg_map``, and name it in ``seg_fields``."""
        mask = np.full(results['img'].shape[:2], 255, np.uint8)
        return {**results, 'gt_seg_map': mask, 'seg_fields': [*results.get('seg_fields', []), 'gt_seg_map']}


def read_line(line: str | dict) -> tuple[str | dict, int]:
    """Return the images without labels, and their number per image, that a line ``unlabelled`` asks for.

    Raises:
        ValueError: If it is neither the path of a folder nor a dict of these.
    """
    if isinstance(line, str):
        return line, 1
    if not isinstance(line, dict) or not line.keys() & {'dataset', 'data_root'}:
        raise ValueError(
            f'train_dataloader.unlabelled is {line!r}. Give it the path of a folder with images, or a dict: '
            "dict(data_root='path', per_image=1), or dict(dataset=dict(type='...'), per_image=1).")
    line = dict(line)
    per_image, dataset = line.pop('per_image', 1), line.pop('dataset', None)
    if dataset is not None and line:
        raise ValueError(
            f'train_dataloader.unlabelled has a dataset, and beside it {sorted(line)}. Only per_image belongs there: '
            'put the rest into the dataset.')
    return line if dataset is None else dataset, per_image


def _with_line(build: Callable[..., DataLoader]) -> Callable[..., DataLoader]:
    """Let the config of a data loader have a line ``unlabelled``, for a :class:`WithUnlabelled` around its dataset."""
    @wraps(build)
    def build_dataloader(loader: DataLoader | dict, *arguments: object, **keywords: object) -> DataLoader:
        if isinstance(loader, dict) and 'unlabelled' in loader:
            loader = dict(loader)
            dataset, per_image = read_line(loader.pop('unlabelled'))
            if isinstance(loader['dataset'], dict):  # else it is built already, and has them
                loader['dataset'] = dict(
                    type='overhaul.WithUnlabelled', dataset=loader['dataset'], unlabelled=dataset, per_image=per_image)
        return build(loader, *arguments, **keywords)

    return build_dataloader


# mmengine's loaders take what torch's take, and ask nobody else.
Runner.build_dataloader = staticmethod(_with_line(Runner.build_dataloader))


def _is_leaf(cfg: Mapping) -> bool:
    return not cfg.keys() & {'dataset', 'datasets'}


def _without_labels(cfg: Mapping, labelled: Mapping) -> dict:
    """Return the config of a dataset, and of those in it, without labels, and with the pipeline of ``labelled``."""
    if 'dataset' in cfg:
        return {**cfg, 'dataset': _without_labels(cfg['dataset'], labelled)}
    if 'datasets' in cfg:
        return {**cfg, 'datasets': [_without_labels(part, labelled) for part in cfg['datasets']]}
    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = registry.get(cfg['type'])
    if not (isinstance(cls, type) and issubclass(cls, BaseDataset)):
        return dict(cfg)
    if 'pipeline' in cfg:
        labelled = dict(pipeline=cfg['pipeline'])
    # filter_cfg chooses images by their labels.
    return _in_place_of(labelled, {key: value for key, value in cfg.items() if key != 'filter_cfg'})


def _in_place_of(labelled: Mapping, leaf: Mapping) -> dict:
    """Return the config ``leaf`` with the pipeline of ``labelled``, also that of a dataset around it."""
    if _is_leaf(labelled):
        return {**leaf, 'pipeline': [dict(type='overhaul.ForgetLabels'), *map(_blank, labelled.get('pipeline', []))]}
    inner = _in_place_of(labelled['dataset'] if 'dataset' in labelled else labelled['datasets'][0], leaf)
    return {**labelled, 'dataset': inner} if 'pipeline' in labelled else inner


def _blank(transform: object) -> object:
    """Return a transform, or what stands for it and those in it where there are no labels."""
    if isinstance(transform, Mapping):
        with TRANSFORMS.switch_scope_and_registry(None) as registry:
            cls = registry.get(transform['type']) if isinstance(transform.get('type'), str) else None
        blank = (stand_in(cls) if isinstance(cls, type) else None) or {}
        return blank if 'type' in blank else {key: _blank(value) for key, value in transform.items()} | blank
    return list(map(_blank, transform)) if isinstance(transform, list) else transform


def _unlabelled(item: dict) -> dict:
    if not isinstance(item, Mapping) or 'inputs' not in item:
        raise ValueError(
            f'The images without labels come as {type(item).__name__}, and not as a dict with inputs and data_samples. '
            'End their pipeline with the transform that packs them, as PackInputs.')
    given = item.get('data_samples')
    sample = type(given)() if isinstance(given, BaseDataElement) else BaseDataElement()
    if isinstance(given, BaseDataElement):
        sample.set_metainfo(dict(given.metainfo_items()))
        for name, value in given.items():
            if isinstance(value, InstanceData):  # which preprocessors look for
                sample.set_field(value[:0], name)
    mark_unlabelled(sample)
    return {**item, 'data_samples': sample}


def _tell_of_images_in_both(*datasets: Dataset) -> None:
    """Say in the log if there are, as far as that is quickly known."""
    labelled, unlabelled = (set(islice(_images(dataset), most)) for dataset, most in zip(datasets, _MOST_COMPARED))
    both = len(labelled & unlabelled)
    if both:
        print_log(
            f'{both} of {counted(len(labelled), "image")} with labels {"is" if both == 1 else "are"} among those '
            'without labels, too: without their labels they are as good as any other.', 'current')


def _images(dataset: Dataset) -> Iterator[str | bytes]:
    info = getattr(dataset, 'get_data_info', None)
    for index in range(len(dataset) if info else 0):
        known = info(index)
        if 'img_path' in known:
            yield known['img_path']
        elif 'img' in known:
            yield known['img'].tobytes()
