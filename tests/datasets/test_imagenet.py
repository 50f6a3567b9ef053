import shutil

import pytest
from tiny_data import write_imagenet

from overhaul.registry import DATASETS


def dataset(root, split):
    return DATASETS.build(dict(type='overhaul.ImageNet', data_root=str(root), split=split))


@pytest.fixture
def imagenet(tmp_path):
    write_imagenet(tmp_path / 'imagenet')
    return tmp_path / 'imagenet'


def test_the_labels_are_those_of_the_class_folders_or_of_the_list(imagenet):
    for split, count in (('train', 8), ('val', 4)):
        images = dataset(imagenet, split)
        assert [item['gt_label'] for item in images] == list(range(count))
        assert len(images.metainfo['classes']) == 1000
    assert dataset(imagenet, 'val')[3]['img_path'].endswith('imagenet/val/ILSVRC2012_val_00000004.JPEG')


def test_a_missing_dataset_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        dataset(tmp_path / 'imagenet', 'train')
    assert f'{tmp_path}/imagenet/train" does not exist' in str(error.value)
    assert 'https://image-net.org' in str(error.value)
    assert 'train/<wnid>/*.JPEG' in str(error.value)


def test_a_flat_val_without_labels_says_where_they_are_to_be_had(imagenet):
    (imagenet / 'meta/val.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'val" has 0 class folders.*no list of labels.*caffe_ilsvrc12.tar.gz'):
        dataset(imagenet, 'val')


def test_a_missing_class_is_found_at_once(imagenet):
    shutil.rmtree(imagenet / 'train/n00000999')
    with pytest.raises(FileNotFoundError, match='train" has 999 class folders where 1000 are expected'):
        dataset(imagenet, 'train')


def test_listed_images_that_are_not_there_are_found_at_once(imagenet):
    shutil.rmtree(imagenet / 'val')
    (imagenet / 'val').mkdir()
    with pytest.raises(FileNotFoundError, match=r'ILSVRC2012_val_00000001.JPEG", the first file named by .*val.txt"'):
        dataset(imagenet, 'val')


def test_empty_splits_are_refused(imagenet):
    for image in imagenet.glob('train/*/*.JPEG'):
        image.unlink()
    with pytest.raises(ValueError, match='train" has no image in it'):
        dataset(imagenet, 'train')
    (imagenet / 'meta/val.txt').write_text('')
    with pytest.raises(ValueError, match='val.txt" has no image in it'):
        dataset(imagenet, 'val')
