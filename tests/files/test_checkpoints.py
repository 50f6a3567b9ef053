import argparse
import http.server
import io
import os
import tarfile
import threading
import zipfile
from functools import partial
from importlib import metadata

import pytest
import torch
import torchvision
from mmengine import dist
from torch import nn

from overhaul.files import checkpoints
from overhaul.files.checkpoints import read_checkpoint

pytestmark = pytest.mark.quick


def save(tmp_path, content, name='checkpoint.pth', **kwargs):
    path = tmp_path / name
    torch.save(content, path, **kwargs)
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no checkpoint


class Call:
    """Unpickles to the result of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize('new_format', [True, False])
def test_file_that_runs_a_command_is_refused(tmp_path, new_format):
    marker = tmp_path / 'marker'
    hostile = dict(state_dict={'a': torch.zeros(1)}, meta=Call(os.system, f'touch {marker}'))
    file = save(tmp_path, hostile, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r'posix\.system.+nothing was run'):
        read_checkpoint(file)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # so the file is as hostile as it means to be


def test_file_that_reaches_eval_through_getattr_is_refused(tmp_path):
    evaluate = Call(getattr, Call(getattr, getattr, '__self__'), 'eval')
    file = save(tmp_path, dict(state_dict={'a': torch.zeros(1)}, meta=evaluate))
    with pytest.raises(ValueError, match=r"Refused to read '__self__'.+nothing was run"):
        read_checkpoint(file)
    assert torch.load(file, weights_only=False)['meta'] is eval  # so the file is as hostile as it means to be


def test_file_with_an_object_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'holds more than weights \(argparse\.Namespace\).+save the weights alone'):
        read_checkpoint(save(tmp_path, dict(model={'a': torch.zeros(1)}, args=argparse.Namespace(lr=1))))
    with pytest.raises(ValueError, match=r'holds more than weights \(torch\.nn\.modules\.linear\.Linear\)'):
        read_checkpoint(save(tmp_path, nn.Linear(2, 2)))


def test_a_file_that_holds_itself_is_read_to_its_end(tmp_path):
    content = dict(model={'a.weight': torch.zeros(1)}, epoch=3)
    content['again'] = content
    for number in range(9):
        content[f'copy_{number}'] = content
    deep = content['model']
    for _ in range(200):
        deep['deeper'] = deep = {}
    read = checkpoints.weights_in(read_checkpoint(save(tmp_path, content)))
    assert {key: list(names) for key, names in read.items()} == {'model': ['a.weight']}


def torch_bytes(**kwargs):
    file = io.BytesIO()
    torch.save({'a': torch.zeros(100, 100)}, file, **kwargs)
    return file.getvalue()


NEW, OLD = torch_bytes(), torch_bytes(_use_new_zipfile_serialization=False)


@pytest.mark.parametrize('content, message', [
    (b'', 'is empty'),
    (b'\n <!DOCTYPE html><html>Quota exceeded', 'is a web page.+with a browser'),
    (b'<HTML>', 'is a web page'),
    (NEW[:len(NEW) // 2], 'cannot be read to its end.+get it again'),
    (NEW[:300], 'cannot be read to its end'),
    (OLD[:len(OLD) // 2], 'cannot be read to its end'),
    (OLD[:40], r'cannot be read to its end \(EOFError: it stops too early\)'),
    (b'hello world', 'is not a checkpoint'),
    (b'\x89PNG\r\n\x1a\n' + bytes(range(256)), 'is not a checkpoint'),
    (b'version https://git-lfs.github.com/spec/v1', 'is not a checkpoint'),
])
def test_damaged_file(tmp_path, content, message):
    file = tmp_path / 'checkpoint.pth'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(str(file))
    assert str(file) in str(error.value) and '\n' not in str(error.value)
    assert os.listdir(tmp_path) == ['checkpoint.pth'] and file.read_bytes() == content


@pytest.mark.parametrize('name', ['weights.zip', 'weights.tar', 'weights.pth'])
def test_a_checkpoint_in_an_archive_is_to_be_unpacked(tmp_path, name):
    file = tmp_path / name
    if name.endswith('tar'):
        with tarfile.open(file, 'w') as archive:
            archive.addfile(tarfile.TarInfo('run/epoch_9.pth'))
    else:
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('run/epoch_9.pth', NEW)
            archive.writestr('run/log.txt', 'words')
    with pytest.raises(ValueError, match=r'is an archive with run/epoch_9\.pth in it\. Unpack it, and name that file'):
        read_checkpoint(str(file))


@pytest.mark.parametrize('content, found', [
    ({}, 'a dict with nothing in it'),
    ({'epoch': 3, 'lr': 0.1}, 'a dict with the keys epoch, lr'),
    ({'state_dict': {}}, 'a dict with the keys state_dict'),
    ([torch.zeros(1)], 'a list'),
    (torch.zeros(1), 'a Tensor'),
])
def test_file_without_weights(tmp_path, content, found):
    with pytest.raises(ValueError, match=f'holds no weights.+there is {found}'):
        read_checkpoint(save(tmp_path, content))


# ---------------------------------------------------------------------------------------------------------------------
# Places


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save(tmp_path, {'a': torch.ones(1)})
    assert read_checkpoint('~/checkpoint.pth')['a'] == 1


def test_tensors_come_to_the_cpu(tmp_path):
    # Saved on a device that this machine does not have.
    (tmp_path / 'elsewhere.pth').write_bytes(NEW.replace(b'cpu', b'xyz'))
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        torch.load(tmp_path / 'elsewhere.pth', weights_only=True)
    assert read_checkpoint(str(tmp_path / 'elsewhere.pth'))['a'].device.type == 'cpu'


def test_folder(tmp_path):
    save(tmp_path, {}, 'epoch_2.pth')
    with pytest.raises(ValueError, match=r'is a folder. Name a checkpoint file, such as epoch_2\.pth'):
        read_checkpoint(str(tmp_path))


def test_missing_file_names_the_nearest(tmp_path):
    save(tmp_path, {}, 'epoch_20.pth')
    with pytest.raises(FileNotFoundError, match=r'does not exist.+there is epoch_20\.pth'):
        read_checkpoint(str(tmp_path / 'epoch_200.pth'))
    with pytest.raises(FileNotFoundError, match=r'neither does the folder'):
        read_checkpoint(str(tmp_path / 'nowhere' / 'epoch_200.pth'))


@pytest.mark.parametrize('name', [
    'WRN28-4_21.09.pt', 'pyramid200_mixup_15.6.pt', 'pyramid200_mixup_15.6.tar', 'deeplab-resnet.pth.tar'])
def test_missing_official_file_tells_where_it_is(tmp_path, name):
    with pytest.raises(FileNotFoundError, match='https://github.com/clovaai/overhaul-distillation') as error:
        read_checkpoint(str(tmp_path / name))
    assert f'save it as "{tmp_path / name}"' in str(error.value)


def test_shipped_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, '_SHIPPED', tmp_path)
    save(tmp_path, {'a': torch.ones(1)}, 'digits.pth')
    assert read_checkpoint('overhaul://digits.pth')['a'] == 1
    save(tmp_path, {'a': torch.ones(1)}, 'scenes.pth')
    with pytest.raises(FileNotFoundError, match='comes with no weights "digit.pth". It has digits.pth, scenes.pth.'):
        read_checkpoint('overhaul://digit.pth')


def test_a_missing_file_names_checkpoints_of_its_folder_that_are_alike(tmp_path):
    save(tmp_path, {'a': torch.ones(1)}, 'iter_100.pth')
    (tmp_path / 'iter_10.py').touch()
    with pytest.raises(FileNotFoundError, match=r'in that folder there is iter_100\.pth\.'):
        read_checkpoint(str(tmp_path / 'iter_10.pth'))
    with pytest.raises(FileNotFoundError, match=r'nope\.pth" does not exist\. Correct the path\.'):
        read_checkpoint(str(tmp_path / 'nope.pth'))


def test_unknown_scheme():
    with pytest.raises(ValueError, match='"s3://", which is not known.+https://.+torchvision://'):
        read_checkpoint('s3://bucket/a.pth')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty download folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    return tmp_path / 'hub' / 'checkpoints'


@pytest.fixture
def downloads(hub, monkeypatch):
    """The arguments of each download; what arrives is a checkpoint."""
    calls = []

    def download(url, path, hash_prefix, progress):
        calls.append((url, hash_prefix))
        torch.save({'a': torch.ones(1)}, path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    return calls


@pytest.mark.parametrize('name, error, file_hash', [('resnet152', 21.69, '394f9c45'), ('resnet50', 23.87, '0676ba61')])
def test_torchvision_name_stands_for_the_weights_of_the_paper(downloads, name, error, file_hash):
    read_checkpoint(f'torchvision://{name}')
    original = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    assert downloads == [(original.url, file_hash)]
    # The paper measured 23.84 for ResNet-50, torchvision 23.87 for the same weights.
    assert 100 - original.meta['_metrics']['ImageNet-1K']['acc@1'] == pytest.approx(error, abs=0.005)


def test_other_zoo_names(downloads):
    read_checkpoint('torchvision://resnet50.imagenet1k_v2')
    read_checkpoint('mmcls://vgg11')
    read_checkpoint('open-mmlab://resnet50_v1c')
    assert downloads[0] == (torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url, '11ad3fa6')
    fork = any(package.metadata['Name'] == 'onedl-mmengine' for package in metadata.distributions())
    zoo = 'https://mmassets.onedl.ai/' if fork else 'https://download.openmmlab.com/'
    assert all(url.startswith(zoo) and prefix is None for url, prefix in downloads[1:])
    assert 'vgg11' in downloads[1][0] and 'resnet50_v1c' in downloads[2][0]
    with pytest.raises(ValueError, match=r'torchvision has no weights called "resnet512"\. Nearest: resnet152'):
        read_checkpoint('torchvision://resnet512')


def test_download_is_kept_and_found_again(hub, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    save(tmp_path, {'a': torch.ones(1)}, 'zoo.pth')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    try:
        assert read_checkpoint(f'{address}/zoo.pth?download=1')['a'] == 1
        with pytest.raises(FileNotFoundError, match=r'404.+save it as ".+absent\.pth"'):
            read_checkpoint(f'{address}/absent.pth')
    finally:
        server.shutdown()
        server.server_close()
    assert os.listdir(hub) == ['zoo.pth']
    assert read_checkpoint(f'{address}/zoo.pth')['a'] == 1  # the server is gone


def test_only_the_main_process_downloads(hub, downloads, monkeypatch):
    def barrier():
        hub.mkdir(parents=True)
        torch.save({'a': torch.full((1,), 5.)}, hub / 'zoo.pth')  # the main process is done

    monkeypatch.setattr(dist, 'is_main_process', lambda: False)
    monkeypatch.setattr(dist, 'barrier', barrier)
    assert read_checkpoint('https://example.com/zoo.pth')['a'] == 5
    assert downloads == []
