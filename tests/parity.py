"""Compares a setting of the paper, as its config builds it, with exact values of the official code.

    python tests/parity.py tests/data/golden/cifar_a.json

Teacher, student and connectors get the weights that the recipe in tests/golden.py regenerates, the inputs likewise. In
float64, teacher batch norms on batch statistics, dropout 0. One line per quantity: name, ours, golden, relative
difference. Losses must agree to 1e-9, gradients to 1e-7. A file of margin cases is compared with the closed form.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from golden import inputs, labels, load_manifest, recipe_state_dict
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

from overhaul.files.names import to_model_keys
from overhaul.files.weights import load_weights
from overhaul.method.distiller import OverhaulDistiller
from overhaul.method.margins import margin_from_batch_norm
from overhaul.registry import MODELS

ROOT = Path(__file__).parent.parent
CONFIGS = {
    'cifar_a': 'cifar100_wrn28_4_wrn16_4',
    'cifar_b': 'cifar100_wrn28_4_wrn28_2',
    'cifar_c': 'cifar100_wrn28_4_wrn16_2',
    'cifar_d': 'cifar100_wrn28_4_r56',
    'cifar_e': 'cifar100_pyramid200_wrn28_4',
    'cifar_f': 'cifar100_pyramid200_pyramid110',
    'imagenet_a': 'imagenet_r152_r50',
    'imagenet_b': 'imagenet_r50_mobilenet',
    'voc_resnet18': 'voc_r101_r18',
    'voc_mobilenetv2': 'voc_r101_mbv2',
}
LOSS_TOLERANCE, GRADIENT_TOLERANCE, MARGIN_TOLERANCE = 1e-9, 1e-7, 1e-6
# mmseg's MobileNetV2 pads inside its convolutions and the official one before its blocks, so the values differ.
STUDENT_DIFFERS = ('voc_mobilenetv2', )


def build(golden: dict) -> OverhaulDistiller:
    """Build the config of a golden file with the recipe's weights, in float64 and train mode."""
    setting = golden['setting']
    cfg = Config.fromfile(ROOT / 'configs' / f'{CONFIGS[setting]}.py')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with tempfile.TemporaryDirectory() as folder:
        # Through files in the official format, so that what is tested is what loads a user's teacher.
        teacher_file, student_file = f'{folder}/teacher.pth', f'{folder}/student.pth'
        torch.save({'state_dict': recipe_state_dict(load_manifest(golden['teacher']), 'teacher.')}, teacher_file)
        cfg.model.teacher_checkpoint = teacher_file
        cfg.model.input_size = tuple(golden['input_shape'][2:])
        if 'data_preprocessor' in cfg:
            cfg.model.data_preprocessor = cfg.data_preprocessor
        model = MODELS.build(cfg.model)
        if setting not in STUDENT_DIFFERS:
            torch.save({'state_dict': recipe_state_dict(load_manifest(golden['student']), 'student.')}, student_file)
            load_weights(model, student_file)
    connectors = recipe_state_dict(golden['connector_entries'], 'connector.')
    names = {'0': 'conv', '1': 'bn'}
    model.connectors.load_state_dict(
        {'.'.join([i, names[part], rest]): value
         for (i, part, rest), value in ((name.split('.', 2), value) for name, value in connectors.items())})
    for module in model.student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double().train()


def data_samples(golden: dict) -> list:
    """Return the labels of a golden file as mmpretrain or mmseg samples."""
    if golden['setting'].startswith('voc'):
        from mmseg.structures import SegDataSample
        return [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels(golden)]
    from mmpretrain.structures import DataSample
    return [DataSample().set_gt_label(label) for label in labels(golden)]


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class scores of ``model`` at the size of its task: (N, C), or (N, C, H, W) of the image."""
    with torch.no_grad():
        scores = model(images, mode='tensor')
    if scores.dim() == 4:
        scores = nn.functional.interpolate(scores, images.shape[2:], mode='bilinear', align_corners=True)
    return scores


def statistics(name: str, ours: Tensor, golden: dict) -> Iterator[tuple]:
    """Yield mean, deviation and absolute sum of a tensor, and its first elements where they are recorded."""
    values = {'mean': ours.mean(), 'std': ours.std(correction=0), 'abs_sum': ours.abs().sum()}
    for key, value in values.items():
        # Mean and sum cancel, so the size of the terms, not of the result, sets the scale of the difference.
        yield f'{name} {key}', value, golden[key], LOSS_TOLERANCE, golden['std']
    for i, value in enumerate(golden.get('first8_flat', [])):
        yield f'{name} [{i}]', ours.flatten()[i], value, LOSS_TOLERANCE, golden['std']
    for i, value in enumerate(golden.get('pixel00_first8_classes_sample0', [])):
        yield f'{name} class {i}', ours[0, i, 0, 0], value, LOSS_TOLERANCE, golden['std']


def compare(golden: dict) -> Iterator[tuple]:
    """Yield (name, ours, golden, tolerance, least scale) for every quantity of a golden file."""
    model = build(golden)
    images = inputs(golden).double()
    with_student = golden['setting'] not in STUDENT_DIFFERS
    for part, parameters in (('teacher', model.teacher), ('student', model.student), ('connectors', model.connectors)):
        yield f'parameters of {part}', sum(p.numel() for p in parameters.parameters()), golden[f'params_{part}'], 0, 0

    with torch.no_grad():
        features = model.teacher_taps.read(model.teacher, images)
    for i, (tap, feature, margin) in enumerate(zip(golden['taps'], features, model.margins, strict=True)):
        yield from statistics(f'tap {i + 1} teacher feature', feature, tap['teacher_feat'])
        ours, theirs = margin.margin, tap['margin']
        for key, value in (('mean', ours.mean()), ('min', ours.min()), ('max', ours.max()), ('sum', ours.sum())):
            yield f'tap {i + 1} margin {key}', value, theirs[key], LOSS_TOLERANCE, 0
        for channel, value in enumerate(theirs['first8']):
            yield f'tap {i + 1} margin [{channel}]', ours[channel], value, LOSS_TOLERANCE, 0
    yield from statistics('teacher logits', logits(model.teacher, images), golden['teacher_logits'])
    if with_student:
        yield from compare_student(model, golden, images)


def compare_student(model: OverhaulDistiller, golden: dict, images: Tensor) -> Iterator[tuple]:
    """Yield what depends on the student: its features, the losses and the gradients of their sum."""
    yield from statistics('student logits', logits(model.student, images), golden['student_logits'])

    connected = []
    hooks = [
        connector.register_forward_hook(lambda _, inputs, output: connected.append(
            (inputs[0].detach().clone(), output.detach())))  # a clone, since the student may go on in place
        for connector in model.connectors]
    losses = model(images, data_samples(golden), mode='loss')
    for hook in hooks:
        hook.remove()
    total, logged = model.parse_losses(losses)
    total.backward()

    scale = len(images) / model.distill_loss.loss_weight
    weighted_sum = 0
    for i, (name, weight, tap) in enumerate(zip(model.loss_names, model.tap_weights, golden['taps'])):
        student_feature, connector_out = connected[i]
        yield from statistics(f'tap {i + 1} student feature', student_feature, tap['student_feat'])
        yield from statistics(f'tap {i + 1} connector output', connector_out, tap['connector_out'])
        yield f'tap {i + 1} raw loss', losses[name] * scale / weight, tap['raw_loss'], LOSS_TOLERANCE, 0
        yield f'tap {i + 1} weighted loss', losses[name] * scale, tap['loss_after_divider'], LOSS_TOLERANCE, 0
        weighted_sum = weighted_sum + losses[name] * scale
    yield 'distillation loss', weighted_sum, golden['loss_distill'], LOSS_TOLERANCE, 0
    task_loss = total - weighted_sum / scale
    yield 'cross entropy', task_loss, golden['ce_in_script'], LOSS_TOLERANCE, 0
    yield 'total loss', total, golden['total_loss'], LOSS_TOLERANCE, 0
    yield 'logged loss', logged['loss'], golden['total_loss'], LOSS_TOLERANCE, 0

    gradients = golden['grad_l2']
    parameters = dict(model.student.named_parameters())
    for key in ('student_first_conv', 'student_last', 'student_last_bias'):
        (name, ) = to_model_keys({gradients[key]['name']: torch.empty(0)})
        yield f'gradient of {name}', parameters[name].grad.norm(), gradients[key]['l2'], GRADIENT_TOLERANCE, 0
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
    yield 'gradient of the student', norm, gradients['student_all_params_l2'], GRADIENT_TOLERANCE, 0
    for i, connector in enumerate(model.connectors):
        for key, parameter in (('conv', connector.conv.weight), ('bn_weight', connector.bn.weight),
                               ('bn_bias', connector.bn.bias)):
            yield (f'gradient of connector {i + 1} {key}', parameter.grad.norm(),
                   gradients[f'connector_{key}'][i], GRADIENT_TOLERANCE, 0)
    trained_teacher = sum(p.grad is not None for p in model.teacher.parameters())
    yield 'teacher parameters with a gradient', trained_teacher, gradients['teacher_params_with_grad'], 0, 0


def compare_margins(cases: list[dict]) -> Iterator[tuple]:
    """Yield the margin of each case that the official code has one for."""
    for case in cases:
        if case['margin_float64'] is not None:
            weight, bias = torch.tensor([case['bn_weight'], case['bn_bias']], dtype=torch.float64)
            ours = margin_from_batch_norm(weight, bias)
            yield f'margin of {weight:g} and {bias:g}', ours, case['margin_float64'], MARGIN_TOLERANCE, 0


def read(file: Path) -> dict | list:
    """Return what is in a golden file: a setting, or a list of margin cases."""
    try:
        golden = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: "{file}" is no golden file: {error}.') from None
    if isinstance(golden, dict) and golden.get('setting') not in CONFIGS:
        raise SystemExit(
            f'error: no config belongs to the setting "{golden.get("setting")}" of "{file}". Known: '
            f'{", ".join(CONFIGS)}.')
    return golden


def run(file: Path) -> bool:
    """Print the comparison with one golden file and return whether everything agrees."""
    golden = read(file)
    of_setting = isinstance(golden, dict)
    print(f'{golden["setting"]}: configs/{CONFIGS[golden["setting"]]}.py' if of_setting else f'{file.stem}:')
    agree = True
    with DefaultScope.overwrite_default_scope(None):
        for name, ours, theirs, tolerance, least_scale in compare(golden) if of_setting else compare_margins(golden):
            ours = float(ours)
            difference = abs(ours - theirs) / (max(abs(theirs), least_scale) or 1.0)
            verdict = '' if difference <= tolerance else '  <-- differs'
            agree &= difference <= tolerance
            print(f'{name:45} {ours: .15e} {theirs: .15e} {difference:.1e}{verdict}')
    return agree


def main(arguments: list[str] | None = None) -> int:
    """Compare every file on the command line; 0 if all agree, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', type=Path, metavar='FILE', help='golden file, as tests/data/golden/*.json')
    agree = all([run(file) for file in parser.parse_args(arguments).files])
    print('parity: ok' if agree else 'parity: FAILED')
    return 0 if agree else 1


if __name__ == '__main__':
    sys.exit(main())
