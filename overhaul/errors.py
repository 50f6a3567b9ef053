"""How the tools report an error that their user can mend."""

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine import dist

from overhaul.registry import explain, how_to_install

_PACKAGE = Path(__file__).parent
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

# The text with which torch raises an error of a worker again: its traceback, which ends in the last file and the error.
_RAISED_IN_WORKER = re.compile(
    r'DataLoader worker process.*  File "(?P<file>[^"]+)", line \d+, in .*?\n\w+Error: (?P<message>.*)', re.DOTALL)
# What torch says where data and model do not fit, and what that means.
_SYMPTOMS = [
    (r'Target (-?\d+) is out of bounds',
     r'A label is \1, and the model has no such class. Give its head the num_classes of the data; of masks, the values '
     'are the classes from 0 on, and 255 where a pixel is unlabelled.'),
    (r'device-side assert triggered',
     'The GPU met an index out of range, most often a label that the model has no class for. To see which one, train '
     'on the CPU: CUDA_VISIBLE_DEVICES= before the command.'),
    (r'(CUDA|HIP)( error:)? out of memory|_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can.t allocate memory',
     'There is not enough memory for a batch. Take a smaller batch_size of the train_dataloader, or of the '
     'val_dataloader or test_dataloader if it was in a validation or a test; --amp, which halves the maps; and none of '
     '--compile, float16 and model.at_once=False, which keep more of them. On a GPU, nvidia-smi tells whether another '
     'process takes the room.'),
    (r'Please run "(pip install [^"]+)"', r'The config asks for something whose package is not installed. \1'),
    (r"No module named 'pkg_resources'",
     'mmengine reads pkg_resources, which new versions of setuptools have not. pip install "setuptools<81" brings it.'),
    (r"No such file or directory: '(.+?)'",
     r'There is no "\1". If data is meant, put it there, or name its place in the config, most often as data_root.'),
    (r'stack expects each tensor to be equal size, but got (.+)',
     r'The images or the masks of a batch differ in size: \1. End the pipeline of the dataset with a resize or crop to '
     'one size; and a mask is an image of one channel, with the classes as its values and not as colours.'),
    (r'Expected more than 1 value per channel when training, got input size torch.Size\((.+?)\)',
     r'A batch norm has a single value per channel to learn from: its input is \1. That is a batch of one image behind '
     'the pooling of a whole image. Take a train_dataloader.batch_size of 2 or more, and drop_last=True where the last '
     'batch of an epoch may be one image.'),
    ('Expected to have finished reduction in the prior iteration',
     "Some weights got no gradient in a step, as those of the student's head where no image has labels, and several "
     'processes do not expect that. Set find_unused_parameters=True in the config; or, if no image has labels, '
     'give the student no head: head=None.'),
]


@contextmanager
def one_paragraph_errors() -> Iterator[None]:
    """End the program with status 1 and one paragraph where the user is at fault; leave every other error as it is.

    That is where this package refuses something, where a part of the config cannot be built, where data and model do
    not fit, where the system lets nothing be written, or where another process of the training is gone.
    """
    try:
        yield
    except Exception as error:
        told = (
            _refusal(error), _no_room(error), _lost_process(error), _no_package(error), _symptom(error),
            explain(error, 'config'))
        message = next(filter(None, told), None)
        if message is None:
            raise
        sys.exit('error: ' + re.sub(r'\s*\n\s*', ' ', message.strip()))


def _refusal(error: BaseException | None) -> str | None:
    """Return what this package said when it raised ``error``, or an error that was raised again with more words."""
    while isinstance(error, ValueError | FileNotFoundError | ModuleNotFoundError):
        if _is_ours(traceback.extract_tb(error.__traceback__)[-1].filename):
            return str(error)
        in_worker = _RAISED_IN_WORKER.search(str(error))
        if in_worker and _is_ours(in_worker['file']):
            return in_worker['message']
        original = error.__cause__ or error.__context__
        error = original if type(original) is type(error) and str(original) in str(error) else None
    return None


def _is_ours(file: str) -> bool:
    return _PACKAGE in Path(file).parents


def _no_package(error: Exception) -> str | None:
    """Return how a package is installed that detection needs, and no other task."""
    missing = re.search(r"No module named '(\w+)", str(error))
    advice = missing and how_to_install(missing[1])
    return advice and f'The config asks for something that needs {missing[1]}, which is not installed here: {advice}'


def _symptom(error: Exception) -> str | None:
    matches = [(re.search(pattern, str(error)), words) for pattern, words in _SYMPTOMS]
    return next((match.expand(words) for match, words in matches if match), None)


def _no_room(error: Exception) -> str | None:
    """Return what to do about a full disk or a folder that is not ours."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return None
    where = f' at "{error.filename}"' if error.filename else ''
    return (f'{error.strerror}{where}. Checkpoints are written whole or not at all, so those that are there are sound: '
            'make room, or name a folder that you may write to with --work-dir, and go on with --resume.')


def _lost_process(error: Exception) -> str | None:
    """Return what to do where a process of a distributed training waited for another one that is gone."""
    lost = re.search('Connection (closed|reset|refused)|Broken pipe|remote process exited|Timed out', str(error))
    if not dist.is_distributed() or not isinstance(error, RuntimeError) or not lost:
        return None
    return (f'Process {dist.get_rank()} of this training has lost another one ({lost[0]}), which died or cannot be '
            'reached; its own output, or that of the system, tells why. Go on with --resume, for which MAX_RESTARTS '
            'lets tools/dist_train.sh start the processes again by itself.')
