"""Holds the recipe in golden.py against the check values that came with the recorded runs."""

import pytest
import torch
from golden import DATA, inputs, labels, load_golden, load_manifest, parameter_count, recipe_state_dict

RUNS = ('cifar_a', 'cifar_d', 'cifar_f', 'imagenet_b', 'voc_resnet18')

# Network of the manifest (None: connectors of cifar_a), role, official name, first values, sum of all.
CHECK_VALUES = [
    ('wrn28_4', 'teacher.', 'conv1.weight',
     (-0.10224311079550252, -0.24061388630981642, -0.47042915982594663), -1.6995825006160885),
    ('wrn28_4', 'teacher.', 'block2.layer.0.bn1.weight',
     (1.119201339234308, 0.9236558727183013, 0.787911845650419), 62.56147322058678),
    ('wrn28_4', 'teacher.', 'block2.layer.0.bn1.bias',
     (4.476805356937232, 0.5233818371871986, 0.5888836953491035), 40.58366575278342),
    ('wrn28_4', 'teacher.', 'bn1.running_var',
     (1.1526025918960683, 0.8548904100327576, 0.8903674863080698), 254.92338687181473),
    ('wrn16_4', 'student.', 'fc.weight',
     (0.04598794263633508, -0.055425812241160013, 0.06432821261490371), -8.905822817760964),
    ('wrn16_4', 'student.', 'fc.bias',
     (-0.03903651310063827, -0.06718655716273308, -0.039945894660021096), -0.5963826676743338),
    (None, 'connector.', '0.0.weight',
     (0.12947674969661194, 0.06644004297951174, 0.016522725827471208), -6.600762878601017),
    (None, 'connector.', '0.1.bias',
     (3.7261540200111662, 1.0553321467694963, -0.6273819566253842), 32.45294128777459),
    ('deeplab_mobilenetv2', 'student.', 'backbone.features.4.conv.0.weight',
     (-0.035313428109370555, -0.09301583516058042, 0.1177999729643424), 12.112465634757427),
]


@pytest.mark.parametrize(('network', 'prefix', 'name', 'first', 'total'), CHECK_VALUES)
def test_recipe_draws_the_recorded_values(network, prefix, name, first, total):
    manifest = load_manifest(network) if network else load_golden('cifar_a')['connector_entries']
    tensor = recipe_state_dict([entry for entry in manifest if entry[0] == name], prefix)[name]
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor.flatten()[:3], torch.tensor(first))  # the recorded values, rounded to float32
    assert tensor.double().sum().item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize('setting', RUNS)
def test_inputs_and_labels_are_the_recorded_ones(setting):
    golden = load_golden(setting)
    images, targets = inputs(golden), labels(golden)
    assert images.dtype == torch.float32 and list(images.shape) == golden['input_shape']
    assert images.double().sum().item() == pytest.approx(golden['input_sum_float32_as_double'], rel=1e-12)
    assert targets.dtype == torch.int64 and list(targets.shape) == golden['label_shape']
    assert targets.flatten()[:8].tolist() == golden['labels_first8']
    assert (targets == 255).sum().item() == golden['label_ignored']
    assert targets.sum().item() == golden['label_sum']


@pytest.mark.parametrize('path', sorted((DATA / 'checkpoint_keys').glob('*.json')), ids=lambda path: path.stem)
def test_manifests_hold_as_many_parameters_as_were_counted(path):
    network = path.stem.removeprefix('manifest_')
    aliases = ('backbone.low_level_features.', 'backbone.high_level_features.')
    count = sum(
        torch.Size(shape).numel() for name, shape, kind in load_manifest(network)
        if not name.startswith(aliases) and not kind.startswith(('bn_running', 'bn_num')))
    assert count == parameter_count(network)


def test_recipe_repeats_shared_tensors_under_each_of_their_names():
    state_dict = recipe_state_dict(load_manifest('deeplab_mobilenetv2'), 'student.')
    for index, group in ((2, 'low_level_features'), (17, 'high_level_features')):
        original, repeated = (f'backbone.{name}.{index}.conv.0.weight' for name in ('features', group))
        assert torch.equal(state_dict[original], state_dict[repeated])


def test_batch_counters_start_at_zero():
    state_dict = recipe_state_dict(load_manifest('wrn16_2'), 'student.')
    counters = [tensor for name, tensor in state_dict.items() if name.endswith('num_batches_tracked')]
    assert len(counters) == 13
    assert all(counter.dtype == torch.int64 and counter.item() == 0 for counter in counters)
