"""Files that pretend to be checkpoints: damaged by accident, or made to harm who reads them. Each is written here."""

import inspect
import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import torch

TERABYTES = 10**13
WEIGHTS = {'state_dict': {'weight': torch.arange(6.).view(2, 3)}}


class Call:
    """Unpickles to a call of ``function`` with ``arguments``, and where there is one, a state for the result."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def _save(path, meta, **options):
    torch.save({**WEIGHTS, 'meta': meta}, path, **options)


def _as_zip(path, compression=zipfile.ZIP_STORED, **records):
    """Write the zip file of a sound checkpoint with some records of other content."""
    sound = io.BytesIO()
    torch.save(WEIGHTS, sound)
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, 'w', compression) as target:
        for name in source.namelist():
            record = name.partition('/')[2].replace('/', '_')
            target.writestr(name, records.get(record, source.read(name)))


def _marker(path):
    return f'touch {path.parent / "harmed"}'


# --- Code to run


def calls_os_system(path):
    _save(path, Call(os.system, _marker(path)))


def calls_os_system_in_the_old_format(path):
    _save(path, Call(os.system, _marker(path)), _use_new_zipfile_serialization=False)


def calls_os_system_in_a_bare_pickle(path):
    path.write_bytes(pickle.dumps(Call(os.system, _marker(path)), protocol=2))


def calls_os_system_in_a_text_pickle(path):
    path.write_bytes(pickle.dumps(Call(os.system, _marker(path)), protocol=0))


def calls_os_system_as_a_key(path):
    path.write_bytes(b'')
    torch.save({**WEIGHTS, 'optimizer': OrderedDict([(1, Call(os.system, _marker(path)))])}, path)


def calls_eval(path):
    _save(path, Call(eval, f'__import__("os").system({_marker(path)!r})'))


def calls_exec(path):
    _save(path, Call(exec, f'import os; os.system({_marker(path)!r})'))


def opens_a_file_for_writing(path):
    _save(path, Call(open, str(path.parent / 'harmed'), 'w'))


def imports_a_module(path):
    _save(path, Call(__import__, 'antigravity'))


def reaches_eval_through_getattr(path):
    _save(path, Call(getattr, Call(getattr, getattr, '__self__'), 'eval'))


def reaches_globals_through_getattr(path):
    _save(path, Call(getattr, torch.load, '__globals__'))


def calls_torch_load(path):
    _save(path, Call(torch.load, str(path)))


def calls_torch_hub_load(path):
    _save(path, Call(torch.hub.load, str(path.parent), 'model', 'local'))


def calls_torch_save(path):
    _save(path, Call(torch.save, 1, str(path.parent / 'harmed')))


def calls_numpy_save(path):
    _save(path, Call(np.save, str(path.parent / 'harmed'), 1))


def calls_numpy_load(path):
    _save(path, Call(np.load, str(path), None, True))


def sets_a_module(path):
    _save(path, Call(torch.nn.Linear, 1, 1))


def sets_an_attribute_of_a_tensor_class(path):
    arguments = (1, str(path.parent / 'harmed'))
    _save(path, Call(torch._tensor._rebuild_from_type_v2, torch.save, torch.Tensor, arguments, {}))


def forges_addresses_of_objects(path):
    _save(path, Call(np.ndarray, (2, ), 'O', Call(bytearray, b'A' * 16)))


def forges_addresses_of_objects_in_a_record(path):
    fields = {'a': (Call(np.dtype, 'O8', False, True), 0)}
    dtype = Call(np.dtype, 'f8', False, True, state=(3, '|', None, ('a', ), fields, 8, 8, 0))
    _save(path, _array((2, ), dtype, b'A' * 16))


# --- Memory to take: without the refusal each would touch gigabytes


def zip_bomb(path):
    block = zlib.compressobj(wbits=-15)
    mebibyte = block.compress(bytes(2**20)) + block.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
    _as_zip(path, data_0=mebibyte * 4096 + block.flush())
    _claim(path, 'data/0', 4096 * 2**20, zipfile.ZIP_DEFLATED)


def zip_record_of_terabytes(path):
    _as_zip(path)
    _claim(path, 'data/0', TERABYTES)


def _claim(path, record, size, compression=zipfile.ZIP_STORED):
    """Let the directory of a zip file say that a record in it has this size."""
    with zipfile.ZipFile(path, 'a') as file:
        (info, ) = [info for info in file.infolist() if info.filename.endswith(record)]
        info.file_size, info.compress_type = size, compression
        file._didModify = True  # so that the directory is written anew


def tar_header_of_terabytes(path):
    header = tarfile.TarInfo('pax')
    header.type, header.size = tarfile.XHDTYPE, TERABYTES
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))


def bytes_of_terabytes(path):
    _save(path, Call(bytearray, TERABYTES))


def bytes_of_gigabytes(path):
    _save(path, Call(bytearray, 4 * 2**30))


def bytes_of_gigabytes_in_the_old_format(path):
    _save(path, Call(bytearray, 4 * 2**30), _use_new_zipfile_serialization=False)


def old_storage_of_terabytes(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    six = re.compile(rb'(cpuq.)K\x06', re.DOTALL)
    changed, count = six.subn(lambda match: match[1] + b'\x8a\x08' + struct.pack('<q', TERABYTES), path.read_bytes())
    assert count == 1
    path.write_bytes(changed)


def array_of_terabytes(path):
    _save(path, _array((TERABYTES, ), Call(np.dtype, 'f8', False, True)))


def array_of_gigabytes_made_a_tensor(path):
    array = _array((2**29, ), Call(np.dtype, 'f8', False, True))
    _save(path, Call(torch._utils._rebuild_device_tensor_from_numpy, array, torch.float32, 'cpu', False))


def _array(shape, dtype, content=b''):
    make, arguments, _ = np.zeros(0).__reduce__()
    return Call(make, *arguments, state=(1, shape, dtype, False, content))


def tensor_beyond_its_storage(path):
    storage = torch.zeros(2).untyped_storage()
    _save(path, Call(
        torch._utils._rebuild_tensor_v2, torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32), 0,
        (TERABYTES, ), (1, ), False, OrderedDict()))


def text_of_gigabytes(path):
    path.write_bytes(_MAGIC + b'\x80\x02X' + struct.pack('<I', 2**32 - 1) + b'a')


# --- Damage


def truncated_zip(path):
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-100])


def truncated_half(path):
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def truncated_in_the_old_format(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])


def flipped_bits_in_the_pickle(path):
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes().replace(b'_rebuild_tensor_v2', b'_rebuild_tensor_w2'))


def zeros_after_the_beginning(path):
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[:64] + bytes(len(content) - 64))


def zip_without_a_pickle(path):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('archive/version', '3')


def zip_without_its_storages(path):
    _as_zip(path, data_0=b'')


def unknown_byte_order(path):
    _as_zip(path, byteorder=b'middle')


def old_format_of_another_byte_order(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(_MAGIC[::-1] + path.read_bytes()[len(_MAGIC):])


def truncated_safetensors(path):
    path.write_bytes(_safetensors(dict(weight=dict(dtype='F32', shape=[2, 3], data_offsets=[0, 24]))))


def safetensors_header_of_terabytes(path):
    path.write_bytes(struct.pack('<Q', TERABYTES) + b'{"weight":')


def safetensors_of_terabytes(path):
    path.write_bytes(_safetensors(dict(weight=dict(dtype='F32', shape=[TERABYTES], data_offsets=[0, 4 * TERABYTES]))))


def safetensors_beyond_their_end(path):
    path.write_bytes(_safetensors(dict(weight=dict(dtype='F32', shape=[2, 3], data_offsets=[8, 32])), bytes(24)))


def safetensors_without_tensors(path):
    path.write_bytes(_safetensors(dict(__metadata__=dict(format='pt'))))


def _safetensors(header, content=b''):
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + content


# --- Something else


def empty(path):
    path.touch()


def one_byte(path):
    path.write_bytes(b'P')


def text(path):
    path.write_text('weights follow tomorrow')


def web_page(path):
    path.write_text('<!DOCTYPE html><html><title>Quota exceeded</title></html>')


def web_page_after_blanks(path):
    path.write_text('\n\n  <html><body>404</body></html>')


def folder(path):
    path.mkdir()


def link_to_nothing(path):
    path.symlink_to(path.with_name('nothing'))


def link_to_itself(path):
    path.symlink_to(path)


def link_to_a_device(path):
    path.symlink_to('/dev/zero')


def pipe(path):
    os.mkfifo(path)


def image(path):
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))


def zip_of_something_else(path):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('readme.txt', 'hello')


def tar_of_torch_0_1(path):
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as file:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            content = pickle.dumps(Call(os.system, _marker(path)), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def numpy_file(path):
    with path.open('wb') as file:
        np.save(file, np.arange(3.))


def numpy_file_of_objects(path):
    with path.open('wb') as file:
        np.save(file, np.array([Call(os.system, _marker(path))]), allow_pickle=True)


def array_of_objects(path):
    _save(path, np.array([{}, []], dtype=object))


def torch_script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def whole_model(path):
    torch.save(torch.nn.Linear(2, 2), path)


def numbers_without_weights(path):
    torch.save({'state_dict': {'epoch': 3}}, path)


def lists_in_lists(path):
    """Nested deeper than the interpreter can follow."""
    nested = b']' * 10**5 + b'a' * (10**5 - 1)
    path.write_bytes(_MAGIC + b'\x80\x02M\xe9\x03.\x80\x02}.\x80\x02' + nested + b'.\x80\x02].')


_MAGIC = pickle.dumps(0x1950a86a20f9469cfc6c, protocol=2)
WRITERS = [
    value for name, value in list(globals().items())
    if inspect.isfunction(value) and not name.startswith('_')]
