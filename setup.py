"""Installs Overhaul. mmcv is left to the user: see the README."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
onnx = ['onnx', 'onnxscript', 'onnxruntime']
version = re.search(r"__version__ = '(.+)'", (here / 'overhaul/__init__.py').read_text()).group(1)


class BuildWithConfigs(build_py):
    """Puts configs and tools into the package as .mim, which is where those of every OpenMMLab package are.

    An editable installation needs no copy: there the package is beside them.
    """

    def run(self) -> None:
        """Build."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        extension = Path(self.build_lib, 'overhaul/.mim')
        shutil.rmtree(extension, ignore_errors=True)
        for name in ('configs', 'tools'):
            shutil.copytree(here / name, extension / name, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(here / 'model-index.yml', extension)


setup(
    name='overhaul',
    version=version,
    description='Feature distillation (A Comprehensive Overhaul of Feature Distillation) for models of MMEngine',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['overhaul', 'overhaul.*']),
    entry_points={'console_scripts': ['overhaul=overhaul.cli:main']},
    cmdclass={'build_py': BuildWithConfigs},
    package_data={'overhaul': ['py.typed', 'weights/*.pth']},
    install_requires=[
        'torch>=2.6',
        'torchvision',
        'mmengine>=0.10.7',
        'mmsegmentation>=1.2.2',
        'mmpretrain>=1.2.0',
        'scikit-learn',
        # mmsegmentation imports these two and does not declare them.
        'ftfy',
        'regex',
        # mmengine 0.10.7 reads pkg_resources, which setuptools 81 announces to be gone.
        'setuptools<81',
    ],
    extras_require={
        # mmcv and mmcv-lite install into the same folder, so a hard requirement on either would overwrite the other.
        # `pip install overhaul[lite]` brings the one that needs no compiler; with a full mmcv leave the extra out.
        'lite': ['mmcv-lite==2.1.0'],
        'detection': ['mmdet==3.3.0', 'pycocotools'],
        'onnx': onnx,  # for overhaul export --onnx
        'docs': ['pdoc'],
        'test': [
            *onnx, 'hypothesis', 'pdoc', 'pytest', 'pytest-xdist', 'ruff', 'scipy', 'tensorboard', 'timm', 'wheel'],
    },
)
