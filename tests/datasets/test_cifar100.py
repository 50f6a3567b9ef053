import tarfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from tiny_data import write_cifar100

from overhaul import CIFAR100
from overhaul.registry import DATASETS

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def any_file_will_do(monkeypatch):
    """Without the checksums of the real files."""
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', None]])


@pytest.mark.parametrize(('split', 'count'), [('train', 8), ('test', 4)])
def test_it_reads_the_files_of_cifar_100(tmp_path, any_file_will_do, split, count):
    write_cifar100(tmp_path)
    dataset = DATASETS.build(dict(type='overhaul.CIFAR100', data_root=str(tmp_path), split=split))
    assert len(dataset) == count and len(dataset.metainfo['classes']) == 100
    assert [item['gt_label'] for item in dataset] == list(range(count))
    assert dataset[0]['img'].shape == (32, 32, 3)
    first_pixel = np.random.RandomState(0).randint(0, 256, (8, 3, 32, 32), dtype=np.uint8)[0, :, 0, 0]
    if split == 'train':
        assert np.array_equal(dataset[0]['img'][0, 0], first_pixel)


def test_an_archive_saved_by_hand_is_unpacked(tmp_path, any_file_will_do, monkeypatch):
    write_cifar100(tmp_path / 'elsewhere')
    with tarfile.open(tmp_path / 'cifar-100-python.tar.gz', 'w:gz') as archive:
        archive.add(tmp_path / 'elsewhere/cifar-100-python', 'cifar-100-python')
    monkeypatch.setattr(CIFAR100, 'tgz_md5', None)
    monkeypatch.setattr(CIFAR100, 'url', 'file:///nowhere')
    assert len(CIFAR100(str(tmp_path))) == 8


def test_without_a_connection_it_says_what_to_save_where(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, 'url', 'http://127.0.0.1:9/cifar-100-python.tar.gz')  # nobody listens there
    with pytest.raises(FileNotFoundError) as error:
        CIFAR100(str(tmp_path / 'cifar100'))
    assert 'Connection refused' in str(error.value)
    assert 'Download http://127.0.0.1:9/cifar-100-python.tar.gz' in str(error.value)
    assert f'save it as "{tmp_path}/cifar100/cifar-100-python.tar.gz"' in str(error.value)


def test_damaged_files_are_refused(tmp_path, monkeypatch):
    write_cifar100(tmp_path)  # with other checksums than the real ones
    with pytest.raises(FileNotFoundError, match='CIFAR-100 is not whole in .*cifar-100-python"'):
        CIFAR100(str(tmp_path), download=False)


def test_the_config_uses_it():
    cfg = Config.fromfile(CONFIGS / '_base_/datasets/cifar100.py')
    assert cfg.train_dataloader.dataset.dataset.type == cfg.test_dataloader.dataset.type == 'overhaul.CIFAR100'
