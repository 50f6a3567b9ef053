"""Installs Overhaul. The stack, mmengine, mmcv, mmpretrain and mmsegmentation, is left to the user: see the README."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
onnx = ['onnx', 'onnxscript', 'onnxruntime; python_version < "3.15"']  # which has none for a Python so new
version = re.search(r"__version__ = '(.+)'", (here / 'overhaul/__init__.py').read_text()).group(1)
repository = re.search(r'^repository-code: (\S+)', (here / 'CITATION.cff').read_text(), re.MULTILINE)


def follow_outside(link: re.Match) -> str:
    """Make a link of the README work outside the repository; of one to a repository without an address keep the words.

    The address is that in CITATION.cff.
    """
    image, words, path = link.groups()
    if repository:
        return f'{image}[{words}]({repository[1]}/{"raw" if image else "blob"}/main/{path})'
    return '' if image else words


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
        for name in ('model-index.yml', 'SECURITY.md'):
            shutil.copy(here / name, extension)


readme = (here / 'README.md').read_text()

setup(
    name='overhaul',
    version=version,
    description='Feature distillation (A Comprehensive Overhaul of Feature Distillation) for models of MMEngine',
    long_description=re.sub(r'(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)', follow_outside, readme),
    long_description_content_type='text/markdown',
    author='The Overhaul authors',
    license='Apache-2.0',
    keywords=['knowledge distillation', 'feature distillation', 'model compression', 'OpenMMLab', 'PyTorch'],
    project_urls={
        'Paper': 'https://arxiv.org/abs/1904.01866', **({'Repository': repository[1]} if repository else {})},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['overhaul', 'overhaul.*']),
    entry_points={'console_scripts': ['overhaul=overhaul.cli:main']},
    cmdclass={'build_py': BuildWithConfigs},
    package_data={'overhaul': ['py.typed', 'weights/*.pth']},
    install_requires=[
        'torch>=2.6',
        'torchvision',
        'scikit-learn',
        # mmsegmentation imports these two and does not declare them.
        'ftfy',
        'regex',
    ],
    extras_require={
        # The stack. No hard requirement, since two packages of one name overwrite each other: mmcv and mmcv-lite,
        # mmengine and onedl-mmengine. Who has one, leaves both extras out.
        'lite': [
            'mmengine>=0.10.7', 'mmcv-lite==2.1.0', 'mmpretrain>=1.2.0', 'mmsegmentation>=1.2.2',
            'setuptools<81',  # mmengine 0.10.7 reads pkg_resources, which newer ones have not
        ],
        'onedl': [
            'onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmpretrain>=1.3.6', 'onedl-mmsegmentation>=1.4.2'],
        'detection': ['mmdet==3.3.0', 'pycocotools'],
        'onnx': onnx,  # for overhaul export --onnx
        'docs': ['pdoc'],
        'test': [
            *onnx, 'hypothesis', 'pdoc', 'pytest', 'pytest-xdist', 'ruff', 'scipy', 'tensorboard', 'timm', 'wheel'],
    },
)
