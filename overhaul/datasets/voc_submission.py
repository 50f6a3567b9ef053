"""Masks for the test set of Pascal VOC 2012, in the form that its evaluation server takes."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from PIL import Image

from overhaul.registry import METRICS, counted, is_type, type_name

# Competition 6: segmentation with any training data, as the SBD masks and pretrained backbones are.
_FOLDER = 'results/VOC2012/Segmentation/comp6_test_cls'
_SERVER = 'http://host.robots.ox.ac.uk:8080'
# Transforms that need a mask, or that make predictions other than at the size of the image file.
_LEFT_OUT = ('mmseg.LoadAnnotations', 'mmengine.LoadAnnotations', 'overhaul.EvaluateAtInputSize')


def prepare(cfg: Config, folder: str) -> None:
    """Edit a config so that its test writes ``folder/results.tgz`` for the images of VOC's test set.

    The images are those of ``ImageSets/Segmentation/test.txt``, in ``JPEGImages`` beside those for training.

    Raises:
        ValueError: If the config does not test on ``overhaul.PascalVOC``.
    """
    dataset = cfg.test_dataloader.dataset
    if not is_type(dataset, 'overhaul.PascalVOC'):
        raise ValueError(
            f'This config tests on {type_name(dataset)}, and a submission to the server of Pascal VOC is made of its '
            'test set. Name a config whose test_dataloader has an overhaul.PascalVOC, such as configs/voc_r101_r18.py.')
    dataset.ann_file = 'ImageSets/Segmentation/test.txt'
    dataset.data_prefix.pop('seg_map_path', None)
    dataset.pipeline = [step for step in dataset.pipeline if not is_type(step, *_LEFT_OUT)]
    cfg.test_evaluator = dict(type='overhaul.VOCSubmission', folder=folder)


@METRICS.register_module()
class VOCSubmission(BaseMetric):
    """Writes each prediction (1, H, W) as the indexed PNG that VOC's evaluation server takes, and packs them all.

    Into ``folder`` go ``results/VOC2012/Segmentation/comp6_test_cls/<image>.png``, with class indices 0..20 and VOC's
    colours, and ``results.tgz``, which is that tree. Its only result is ``images``, their number. mmseg's ``IoUMetric``
    with ``format_only`` writes grey images.

    Args:
        folder: Where to write. Made if it does not exist.
        collect_device: As in every metric of mmengine.
    """

    def __init__(self, folder: str, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.folder = Path(folder)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Write the masks of a batch."""
        (self.folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        for sample in data_samples:
            mask = Image.fromarray(sample['pred_sem_seg']['data'][0].cpu().numpy().astype(np.uint8))
            mask.putpalette(np.asarray(self.dataset_meta['palette'], dtype=np.uint8).tobytes())
            name = f'{Path(sample["img_path"]).stem}.png'
            mask.save(self.folder / _FOLDER / name)
            self.results.append(name)

    def compute_metrics(self, results: list[str]) -> dict[str, int]:
        """Pack the masks of all processes."""
        archive = self.folder / 'results.tgz'
        with tarfile.open(archive, 'w:gz') as tar:
            for name in sorted(set(results)):
                tar.add(self.folder / _FOLDER / name, arcname=f'{_FOLDER}/{name}')
        masks = counted(len(set(results)), 'mask is', 'masks are')
        print_log(f'{masks} in {archive}. Upload it at {_SERVER} (VOC2012, comp6).', 'current')
        return dict(images=len(set(results)))
