import sys

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.visualization import TensorboardVisBackend

from overhaul.errors import one_paragraph_errors
from overhaul.files.settings import read_config
from overhaul.registry import MODELS


def refuse():
    read_config('absent/config.py')


def reraise():
    # As older mmengine does it when it builds from a config, to add where it was.
    try:
        refuse()
    except Exception as error:
        raise type(error)(f'class `X` in x.py: {error}')  # noqa: B904


def test_refusal_of_the_package_ends_the_program():
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        refuse()
    assert exit_.value.code == (
        'error: There is no config file "absent/config.py". Nothing near has a name like it.')


def test_refusal_that_was_raised_again_with_more_words():
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        reraise()
    assert exit_.value.code.startswith('error: There is no config file')


def test_refusal_is_one_paragraph(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(r"raise ValueError('first line\n\n  second line')")
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        read_config(str(path))
    assert 'first line second line' in exit_.value.code


@pytest.mark.parametrize('registry', [MODELS, ROOT_MODELS])
def test_config_that_cannot_be_built(registry):
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        registry.build(dict(type='overhaul.PartialL2Loss', weight=1))
    assert exit_.value.code == (
        'error: The config gives PartialL2Loss an unknown key "weight". Nearest: loss_weight.')


def test_a_backend_without_its_package(monkeypatch, tmp_path):
    for name in ('torch.utils.tensorboard', 'tensorboardX'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        _ = TensorboardVisBackend(str(tmp_path)).experiment
    assert exit_.value.code == (
        'error: The config asks for something whose package is not installed. pip install future tensorboard')


@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB'),
    RuntimeError('CUDA error: out of memory'),
    RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')])
def test_a_gpu_that_is_full(error):
    with pytest.raises(SystemExit, match=r'^error: There is not enough memory for a batch\.'), one_paragraph_errors():
        raise error


def test_a_machine_that_is_full():
    with pytest.raises(SystemExit, match=r'^error: There is not enough memory for a batch\.'), one_paragraph_errors():
        torch.empty(2**60)


@pytest.mark.parametrize('error', [ValueError('v'), KeyError('k'), TypeError("unexpected keyword argument 'x'"),
                                   FileNotFoundError('f'), RuntimeError('r')])
def test_every_other_error_stays_as_it_is(error):
    with pytest.raises(type(error)) as raised, one_paragraph_errors():
        raise error
    assert raised.value is error


def test_an_error_after_a_refusal_is_not_taken_for_it():
    with pytest.raises(FileNotFoundError, match='^another file$'), one_paragraph_errors():
        try:
            refuse()
        except FileNotFoundError:
            raise FileNotFoundError('another file')  # noqa: B904


@pytest.mark.parametrize('missing', ['mmdet', 'pycocotools', 'pycocotools.mask'])
def test_what_detection_needs_and_is_not_installed_is_told(missing):
    with pytest.raises(SystemExit) as exit_, one_paragraph_errors():
        raise ModuleNotFoundError(f"No module named '{missing}'")
    assert exit_.value.code.startswith('error: The config asks for something that needs ')
    assert 'which is not installed here: pip install "overhaul[detection]" brings mmdet' in exit_.value.code


def test_a_config_of_a_package_that_is_not_installed_is_told(tmp_path):
    (tmp_path / 'config.py').write_text("_base_ = 'mmpose::body_2d_keypoint/any.py'")
    with pytest.raises(ValueError, match='its _base_ is of mmpose, which is not installed here. Correct'):
        read_config(tmp_path / 'config.py')
