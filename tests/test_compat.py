import importlib
import io
import os
import pickle
import pkgutil
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
from mmcv.utils import collect_env
from mmcv.utils.ext_loader import check_ops_exist
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import revert_sync_batchnorm
from small_models import batch, build_distiller, loader, runner, sgd
from strangers_files import Call
from torch import nn
from torch.utils.data import DataLoader

import overhaul
from overhaul import compat
from overhaul.files.settings import read_config

pytestmark = pytest.mark.quick

compat.apply()

lite = pytest.mark.skipif(not isinstance(sys.modules.get('mmcv._ext'), compat._OperatorStub), reason='full mmcv')


def reload(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_mmseg_imports_and_its_segmentors_build():
    # In a process of its own: here mmseg may have been imported before.
    script = (
        'from overhaul import compat; compat.apply(); compat.apply()\n'
        'from mmseg.registry import MODELS; import mmseg.models\n'
        "MODELS.build(dict(type='EncoderDecoder', backbone=dict(type='ResNet', depth=18), "
        "decode_head=dict(type='FCNHead', in_channels=512, channels=8, num_classes=2)))")
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@lite
def test_absent_operator_fails_when_it_is_called():
    from mmcv.ops import nms_match
    with pytest.raises(ImportError, match='The operator "nms_match" is part of the full mmcv'):
        nms_match(np.float32([[0, 0, 1, 1, 0.5]]), 0.5)


@lite
def test_environment_report_works_without_operators():
    report = collect_env()
    assert report['MMCV'] == mmcv.__version__
    assert report['MMCV Compiler'] == report['MMCV CUDA Compiler'] == 'n/a'


def test_full_mmcv_is_left_as_it_is(monkeypatch):
    real = sys.modules['mmcv._ext']
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    compat._stub_mmcv_ops()
    assert 'mmcv._ext' not in sys.modules
    monkeypatch.setitem(sys.modules, 'mmcv._ext', real)
    compat._stub_mmcv_ops()
    assert sys.modules['mmcv._ext'] is real


@pytest.mark.parametrize('whole', [False, True])
def test_a_folder_that_mmaction_lacks_is_an_empty_one(monkeypatch, tmp_path, whole):
    localizers = tmp_path / 'mmaction/models/localizers'
    (localizers / 'drn' if whole else localizers).mkdir(parents=True)
    for folder in (localizers, localizers.parent, localizers.parents[1]):
        (folder / '__init__.py').touch()
    (localizers / '__init__.py').write_text('from .drn.drn import DRN')
    if whole:
        (localizers / 'drn/drn.py').write_text('DRN = "its own"')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith('mmaction')]:
        monkeypatch.delitem(sys.modules, name)
    compat.apply()
    added = 'mmaction.models.localizers.drn' in sys.modules
    found = importlib.import_module('mmaction.models.localizers').DRN
    for name in [name for name in sys.modules if name.startswith('mmaction')]:
        del sys.modules[name]
    assert added is not whole and (found == 'its own') is whole


def test_what_was_imported_without_operators_has_them_afterwards(monkeypatch):
    transformer = importlib.import_module('mmcv.cnn.bricks.transformer')
    found = transformer.MultiScaleDeformableAttention
    monkeypatch.delattr(transformer, 'MultiScaleDeformableAttention')  # as where mmpretrain was imported first
    compat._stub_mmcv_ops()
    assert transformer.MultiScaleDeformableAttention is found


@pytest.mark.parametrize('name', ['mmengine', 'mmcv', 'mmpretrain'])
def test_a_stack_that_is_not_whole_is_told(monkeypatch, name):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda asked: None if asked == name else object())
    with pytest.raises(ModuleNotFoundError, match=f'and {name} cannot be found'):
        importlib.reload(overhaul)


@lite
def test_a_python_without_find_loader_looks_for_operators(monkeypatch):
    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)  # as Python 3.14
    compat._keep_find_loader()
    assert not check_ops_exist()
    model = nn.Sequential(nn.SyncBatchNorm(2))
    assert type(revert_sync_batchnorm(model)[0]) is not nn.SyncBatchNorm  # mmengine's first step
    assert pkgutil.find_loader('mmcv') is not None and pkgutil.find_loader('no_such_package') is None


def test_history_buffer_comes_through():
    buffer = HistoryBuffer()
    for value in (1., 2., 6.):
        buffer.update(value)
    loaded = reload(dict(loss=buffer))['loss']
    assert isinstance(loaded, HistoryBuffer)
    assert (loaded.mean(), loaded.current(), loaded.statistics('max')) == (3, 6, 6)


@pytest.mark.parametrize('value', [
    np.float64(0.5), np.float32(0.5), np.int64(3), np.int32(3), np.uint8(3), np.bool_(True),
    np.uint8([[1, 2], [3, 4]]), np.arange(3.), np.arange(3).astype('>i8'), np.asfortranarray(np.ones((2, 3)))])
def test_numpy_values_come_through(value):
    loaded = reload([value])[0]
    for again in (loaded, reload([loaded])[0]):
        assert isinstance(again, type(value)) and again.dtype == value.dtype.newbyteorder('=')
        np.testing.assert_array_equal(again, value)
    assert b'overhaul' not in pickle.dumps(loaded)


FLOAT, OBJECT, POINTERS = ('f8', False, True), ('O8', False, True), b'A' * 16


def array_of(*dtype, state=None):
    make, arguments, _ = np.zeros(0).__reduce__()
    return Call(make, *arguments, state=(1, (2, ), Call(np.dtype, *dtype, state=state), False, POINTERS))


@pytest.mark.parametrize('hostile', [
    Call(np.ndarray, (2, ), 'O', Call(bytearray, POINTERS)),
    array_of(*OBJECT),
    array_of(*FLOAT, state=(3, '<', None, None, None, -1, -1, 63)),
    array_of(*FLOAT, state=(3, '|', None, ('a', ), {'a': (Call(np.dtype, *OBJECT), 0)}, 8, 8, 0)),
    array_of(*FLOAT, state=(3, '|', (Call(np.dtype, *FLOAT), (10**6, )), None, None, 8, 8, 0)),
], ids=['buffer', 'type of objects', 'flags', 'fields', 'subarrays'])
def test_bytes_do_not_become_objects(hostile):
    # Else they would be taken for addresses, and the process would follow them.
    try:
        (loaded, ) = reload([hostile])
    except ValueError as error:
        assert 'Refused' in str(error)
    else:
        assert loaded.dtype == np.float64 and loaded.nbytes in (0, len(POINTERS))


def test_names_of_numpy_1_come_through():
    file = io.BytesIO()
    torch.save([np.float64(0.5), np.arange(3)], file, _use_new_zipfile_serialization=False)
    renamed = file.getvalue().replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    assert b'numpy.core.multiarray' in renamed
    scalar, array = torch.load(io.BytesIO(renamed), weights_only=True)
    assert scalar == 0.5 and array.tolist() == [0, 1, 2]


@pytest.mark.parametrize('hostile', [
    Call(getattr, Call(getattr, getattr, '__self__'), 'eval'),
    Call(getattr, HistoryBuffer, 'register_statistics'),
    Call(getattr, Call(getattr, HistoryBuffer, 'min'), '__globals__'),
    Call(getattr, HistoryBuffer, '__subclasses__'),
])
def test_getattr_reaches_nothing_else(hostile):
    with pytest.raises(ValueError, match='Refused to read'):
        reload([hostile])


def test_methods_of_a_history_buffer_cannot_be_called():
    with pytest.raises(Exception, match='reduce for unrecognized function'):
        reload([Call(HistoryBuffer.min, None)])


@pytest.fixture
def no_gpu(monkeypatch):
    calls = []
    MMLogger.get_current_instance()  # asks for its rank when it is made
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: bool(calls))
    monkeypatch.setattr(torch.distributed, 'init_process_group', calls.append)
    return calls


def test_launcher_without_a_gpu(no_gpu):
    cfg = Config(dict(launcher='pytorch', find_unused_parameters=True, model_wrapper_cfg=dict(static_graph=True)))
    compat.prepare_launcher(cfg)
    compat.prepare_launcher(cfg)
    assert no_gpu == ['gloo']
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None,
        static_graph=True)


def test_launcher_on_gpus_keeps_the_settings_of_ddp_too(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    cfg = Config(dict(launcher='pytorch', find_unused_parameters=True, model_wrapper_cfg=dict(static_graph=True)))
    compat.prepare_launcher(cfg)
    assert no_gpu == []  # mmengine makes the group, with NCCL
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, static_graph=True)


def test_launcher_takes_none_for_the_wrapper(no_gpu):
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=None))
    compat.prepare_launcher(cfg)
    assert cfg.model_wrapper_cfg.device_ids is None


@pytest.mark.parametrize('gpu', [False, True])
def test_without_a_launcher_all_is_left_alone(no_gpu, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    cfg = Config(dict(launcher='none'))
    compat.prepare_launcher(cfg)
    assert no_gpu == [] and cfg.to_dict() == dict(launcher='none')


@pytest.mark.skipif(sys.platform != 'linux', reason='looks for the threads in /proc')
def test_no_thread_of_the_process_group_is_left(tmp_path):
    before = set(os.listdir('/proc/self/task'))
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    model.itself = [model]  # as a runner, which its hooks know
    threads = set(os.listdir('/proc/self/task')) - before
    assert threads
    del model
    for _ in range(2):
        compat.leave_launcher()
        assert not threads & set(os.listdir('/proc/self/task')) and not torch.distributed.is_initialized()


def test_a_training_whose_optimizer_has_other_groups_is_not_resumed(tmp_path):
    checkpoint = dict(checkpoint=dict(type='CheckpointHook'))
    runner(tmp_path / 'a', build_distiller(), [batch()], 1, sgd(), default_hooks=checkpoint).train()
    wrapper = sgd(paramwise_cfg=dict(norm_decay_mult=0))
    resumed = runner(
        tmp_path / 'b', build_distiller(), [batch()], 2, wrapper, resume=True,
        load_from=str(tmp_path / 'a/epoch_1.pth'))
    compat.never_change_rate(resumed)
    with pytest.raises(ValueError, match=r'in groups, 1 in number, and that of this config has \d\d: optim'):
        resumed.train()


def test_an_epoch_without_an_end_is_refused(tmp_path):
    images = loader([batch()])

    def training(sampler):
        return runner(tmp_path, build_distiller(), [batch()], 1, sgd(), experiment_name=f'{tmp_path} {sampler}',
                      train_dataloader=DataLoader(images.dataset, 4, sampler=sampler, collate_fn=images.collate_fn))

    for sampler in (InfiniteSampler(images.dataset), DefaultSampler(images.dataset)):
        run = training(sampler)
        compat.refuse_endless_epochs(run)
        if isinstance(sampler, InfiniteSampler):
            with pytest.raises(ValueError, match='the first epoch would go on for ever'):
                run.train()
        else:
            run.train()
    assert run.iter == 1


def test_the_metafiles_of_a_zoo_are_read_once():
    names = [f'mmpretrain::resnet/resnet{depth}_8xb32_in1k.py' for depth in (18, 34)]
    depths, read = [], []
    for name in names:
        depths.append(read_config(name).model.backbone.depth)
        read.append(config_utils.load.cache_info().misses)
    assert depths == [18, 34]
    assert read[0] == read[1] > 1
