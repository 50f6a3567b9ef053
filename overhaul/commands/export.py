"""Write the student of a training so that its own package, as mmpretrain, loads it, and as an ONNX graph if wanted.

    overhaul export configs/voc_r101_r18_mmseg.py work_dirs/voc_r101_r18_mmseg/epoch_50.pth student.pth

writes the weights to student.pth and the config to student.py. The ONNX graph takes images that are normalised already,
any number of them, and for segmentation of any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from overhaul.errors import one_paragraph_errors
from overhaul.files.export import export_backbone, export_student


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='checkpoint of the distillation, or of the student alone')
    parser.add_argument('out', metavar='OUT.pth', help='weights to write; the config goes to OUT.py')
    parser.add_argument('--onnx', metavar='OUT.onnx', help='write this graph as well')
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
        help='of the images of a graph that is for one size; default: input_size of the config')
    parser.add_argument(
        '--backbone', action='store_true',
        help='write the backbone alone, for init_cfg or load_from of any config, and no config')
    arguments = parser.parse_args(command_line)
    if arguments.backbone and (arguments.onnx or arguments.size):
        parser.error('--backbone writes weights alone: leave --onnx and --size out')
    return arguments


def main(command_line: Sequence[str] | None = None) -> None:
    """Export."""
    arguments = parse_arguments(command_line)
    with one_paragraph_errors():
        if arguments.backbone:
            print(export_backbone(arguments.config, arguments.checkpoint, arguments.out))
            return
        print(export_student(
            arguments.config, arguments.checkpoint, arguments.out, arguments.onnx, arguments.size))
