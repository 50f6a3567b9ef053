"""docs/evidence.md, docs/speed.md and the README: their numbers are those of docs/results."""

import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import DictAction
from mmengine.registry import DefaultScope
from scipy import stats

from overhaul.files.settings import read_config
from overhaul.registry import MODELS
from overhaul.reports.logs import read_results

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/evidence.md').read_text()


def rows(heading):
    """The cells of the table under a heading, below its own heading."""
    section = PAGE.split(f'## {heading}\n')[1].split('\n## ')[0]
    lines = [line.strip('|').split('|') for line in section.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def mean_and_interval(sample):
    low, high = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    return f'{np.mean(sample):.2f} ± {(high - low) / 2:.2f}'


def command(name):
    """The words of the command whose CSV has that name."""
    lines = ''.join(re.findall(r'```bash\n(.*?)```', PAGE, re.S)).replace('\\\n', ' ').splitlines()
    (line, ) = [line for line in lines if f'--csv docs/results/{name}.csv' in line]
    return shlex.split(line)


VARIANTS = ' '.join(command('ablations')).split('--variant ')[1:]


def test_speed():
    page, readme = ((ROOT / name).read_text() for name in ('docs/speed.md', 'README.md'))
    measured = {}
    for name, batch in (('cifar100_wrn28_4_wrn16_2', 64), ('cifar100_wrn28_4_wrn16_2', 128),
                        ('imagenet_r50_mobilenet', 8), ('voc_r101_r18', 2), ('coco_retinanet_r50_r18', 2)):
        result = json.loads((ROOT / f'docs/results/speed_{name}_batch{batch}.json').read_text())
        variants = measured[batch] = result['variants']
        assert (result['setting']['config'], result['setting']['batch_size']) == (f'{name}.py', batch)
        cells = [f'{variants[mode]["ratio"]["median"]:.3f}, {variants[mode]["memory_ratio"]:.2f}'
                 for mode in ('eager', 'channels_last', 'bfloat16', 'bfloat16+channels_last')]
        assert ' | '.join([f'| `{name}`', str(batch), f'{variants["floor"]["images_per_second"]:.2f}', *cells]) in page
    for mode, variant in measured[64].items():
        if mode != 'floor':
            assert ('| {:.1f} | {median:.3f} ({first_quartile:.3f} to {third_quartile:.3f}) |'.format(
                variant['images_per_second'], **variant['ratio'])) in page
    floor, eager, best = (measured[64][mode] for mode in ('floor', 'eager', 'bfloat16+channels_last'))
    assert (f'{eager["ratio"]["median"]:.2f} times the time of the floor and {eager["memory_ratio"]:.2f} times its '
            'memory.') in readme
    assert f'{best["images_per_second"] / floor["images_per_second"]:.1f} times the images per second' in readme
    assert f'in {best["memory_ratio"]:.2f} times its memory' in readme


def test_the_readme_has_the_results_of_all_seeds():
    readme = (ROOT / 'README.md').read_text()
    for config, unit, seeds in (
            ('digits_wrn16_2_wrn10_1', '% error', 10), ('digitscenes_r34_r18', '% mIoU', 5),
            ('digitdet_gfl_r34_r18', '% box mAP50', 5)):
        for sample in read_results(ROOT / f'docs/results/{config}.csv').units[unit].values():
            (values, ) = sample.values()
            assert len(values) == seeds and f'{mean_and_interval(values)} %' in readme


def test_boxes():
    units = read_results(ROOT / 'docs/results/digitdet_gfl_r34_r18.csv').units
    columns = [{side: sample for side, values in sides.items() for sample in values.values()}
               for sides in (units['% box mAP50'], units['% box mAP'])]
    teacher = json.loads((ROOT / 'docs/results/logs/digitdet_gfl_r34.json').read_text().splitlines()[-1])
    assert rows('Detection') == [
        *([name, str(len(columns[0][side])), mean_and_interval(columns[0][side]),
           f'{min(columns[0][side]):.2f} to {max(columns[0][side]):.2f}', mean_and_interval(columns[1][side])]
          for name, side in (('student alone', 'alone'), ('distilled', 'distilled'))),
        ['teacher', 'one network', f'{100 * teacher["coco/bbox_mAP_50"]:.2f}', '',
         f'{100 * teacher["coco/bbox_mAP"]:.2f}']]
    told = ' and '.join(f'{stats.ttest_rel(*column.values()).pvalue:.0e}' for column in columns)
    assert f'paired tests have p = {told.replace("e-0", "e-")}' in ' '.join(PAGE.split())


def test_scenes_without_labels():
    expected = []
    for name, config, unit, same in (
            ('segmentation, mIoU', 'digitscenes_r34_r18', '% mIoU', 'scenes_longer'),
            ('detection, mAP50', 'digitdet_gfl_r34_r18', '% box mAP50', None)):
        alone, distilled, ours, longer = (
            next(iter(read_results(ROOT / f'docs/results/{file}.csv').units[unit][side].values())) if file else []
            for file, side in ((config, 'alone'), (config, 'distilled'), (f'{config}_unlabelled', 'distilled'),
                               (same, 'distilled')))
        for file, sample in ((f'{config}_unlabelled', ours), (same, longer)):
            if file:
                words = command(file)
                assert len(sample) == int(words[words.index('--seeds') + 1])
        before = longer or distilled
        pairs = list(zip(before, ours))
        expected.append([
            name, str(len(ours)), *(f'{np.mean(sample[:len(ours)]):.2f}' for sample in (alone, distilled)),
            mean_and_interval(longer) if longer else '', mean_and_interval(ours), f'{min(ours):.2f} to {max(ours):.2f}',
            f'{stats.ttest_rel(*zip(*pairs)).pvalue:.1g}'])
        assert f'{mean_and_interval(ours)} %' in (ROOT / 'README.md').read_text()
    assert rows('Scenes without labels') == expected


def test_label_budget():
    results = read_results(ROOT / 'docs/results/label_budget.csv')
    words = command('label_budget')
    values = words[words.index('--vary') + 2:words.index('--csv')]
    assert words[words.index('--vary') + 1] == results.key
    expected, sides = [], results.units['% error']
    for value in values:
        alone, distilled = (sides[side][value] for side in ('alone', 'distilled'))
        expected.append([
            value.replace('None', 'all'), str(len(alone)), mean_and_interval(alone), mean_and_interval(distilled),
            f'{np.mean(distilled) / np.mean(alone):.2f}', f'{stats.ttest_rel(alone, distilled).pvalue:.1g}'])
    assert rows('Error by number of labels') == expected


def test_images_without_labels():
    ours = read_results(ROOT / 'docs/results/label_budget_unlabelled.csv').units['% error']['distilled']
    known = read_results(ROOT / 'docs/results/label_budget.csv').units['% error']
    words, expected = command('label_budget_unlabelled'), []
    assert words[words.index('--vary') + 2:words.index('--csv')] == list(ours)
    for value, sample in ours.items():
        assert len(sample) == int(words[words.index('--seeds') + 1])
        alone, distilled = (known[side][value][:len(sample)] for side in ('alone', 'distilled'))
        expected.append([
            value, str(len(sample)), f'{np.mean(alone):.2f}', f'{np.mean(distilled):.2f}', mean_and_interval(sample),
            f'{min(sample):.2f} to {max(sample):.2f}', f'{np.mean(sample) / np.mean(distilled):.2f}',
            f'{stats.ttest_rel(distilled, sample).pvalue:.1g}'])
    assert rows('Images without labels') == expected
    readme = (ROOT / 'README.md').read_text()
    assert all(f'{mean_and_interval(ours[value])} %' in readme for value in '15')


def test_images_or_smoothing():
    ours, smoothed = (
        read_results(ROOT / f'docs/results/{name}.csv').units['% error']['distilled']
        for name in ('label_budget_unlabelled', 'smoothed'))
    known = read_results(ROOT / 'docs/results/label_budget.csv').units['% error']['distilled']
    words, expected = command('smoothed'), []
    assert words[words.index('--vary') + 2:words.index('--csv')] == list(smoothed)
    for value, sample in smoothed.items():
        assert len(sample) == int(words[words.index('--seeds') + 1])
        distilled, with_others = (sides[value][:len(sample)] for sides in (known, ours))
        expected.append([
            value, str(len(sample)), f'{np.mean(distilled):.2f}', mean_and_interval(sample),
            f'{np.mean(with_others):.2f}', f'{np.mean(with_others) / np.mean(sample):.2f}',
            f'{stats.ttest_rel(sample, with_others).pvalue:.1g}'])
    assert rows('Images or smoothing') == expected


def test_other_images():
    usual = read_results(ROOT / 'docs/results/label_budget_unlabelled.csv').units['% error']['distilled']['5']
    samples = read_results(ROOT / 'docs/results/other_images.csv').units['% error']['distilled']
    words, expected = command('other_images'), []
    assert [words[place + 1] for place, word in enumerate(words) if word == '--variant'] == list(samples)
    for name, sample in samples.items():
        assert len(sample) == int(words[words.index('--seeds') + 1])
        same_seeds = usual[:len(sample)]
        expected.append([
            f'`{name}`', str(len(sample)), mean_and_interval(sample), f'{np.mean(sample) - np.mean(same_seeds):+.2f}',
            f'{stats.ttest_rel(same_seeds, sample).pvalue:.1g}'])
    assert [row[1:] for row in rows('Other images, and a weaker teacher')] == expected


def test_ablations():
    samples = read_results(ROOT / 'docs/results/ablations.csv').units['% error']['distilled']
    assert list(samples) == [variant.split()[0] for variant in VARIANTS]
    default = np.array(samples['default'])
    expected = [['`default`', str(len(default)), mean_and_interval(default), '', '']]
    for name, sample in list(samples.items())[1:]:
        same_seeds = default[:len(sample)]
        expected.append([
            f'`{name}`', str(len(sample)), mean_and_interval(sample), f'{np.mean(sample) - same_seeds.mean():+.2f}',
            f'{stats.ttest_rel(same_seeds, sample).pvalue:.1g}'])
    assert [row[1:] for row in rows('Effect of each part')] == expected


@pytest.mark.parametrize('variant', VARIANTS)
def test_each_ablation_is_an_option(variant):
    name, *options = variant.split()
    overrides = {key: DictAction._parse_iterable(value) for key, value in (option.split('=', 1) for option in options)}
    model = read_config(ROOT / 'configs/digits_wrn16_2_wrn10_1.py', overrides).model
    model.teacher_checkpoint = None
    with DefaultScope.overwrite_default_scope('mmpretrain'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        distiller = MODELS.build(model)
    taps = [tap.path for tap in distiller.teacher_taps]
    margins = [margin.margin.max().item() for margin in distiller.margins]
    found = dict(
        taps=taps[0], margin='kept' if -1 < max(margins) < 0 else max(margins), batch_norm=distiller.teacher_batch_norm,
        distance=type(distiller.distill_loss).__name__, alpha=distiller.distill_loss.loss_weight,
        weights=distiller.tap_weights)
    default = dict(
        taps='backbone.block2.0.bn1', margin='kept', batch_norm='batch', distance='PartialL2Loss', alpha=1e-2,
        weights=[1 / 4, 1 / 2, 1])
    changes = dict(
        default={}, post_relu=dict(taps='backbone.block2.0.conv1:input'), plain_relu=dict(margin=0.0),
        no_transform=dict(margin=-float('inf')), L2=dict(distance='L2Loss'),
        running_statistics=dict(batch_norm='running'), last_tap=dict(weights=[0, 0, 1]),
        last_two_taps=dict(weights=[0, 1 / 2, 1]), **{f'alpha_{alpha}': dict(alpha=float(alpha)) for alpha in (
            '1e-4', '1e-3', '1e-1')})
    assert found == {**default, **changes[name]}
