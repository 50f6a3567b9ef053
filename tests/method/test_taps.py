import copy
import gc
import weakref

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import revert_sync_batchnorm
from small_models import build_model, resnet, segmentor, wide_resnet
from torch import nn

from overhaul.method.taps import Taps

pytestmark = pytest.mark.quick


class Plain(nn.Module):
    """Modules in a row, behind the signature of an mmengine model."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for module in self.children():
            inputs = module(inputs)
        return inputs


class Counting(nn.Module):
    """Counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x


class ChangesInTraining(nn.Module):
    """Doubles its input in place, in train mode alone."""

    def forward(self, x):
        return x.mul_(2) if self.training else x


def images(pixels=16):
    return torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


def taps_of(model, *paths, owner='student', size=(16, 16), stop_after_last=False):
    taps = Taps(model, paths, owner)
    taps.dry_run(model, size, stop_after_last)
    return taps


def without_inplace(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, 'inplace'):
            module.inplace = False
    return model


def test_input_given_by_name():
    class ByName(Plain):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.relu(input=self.conv(inputs))

    model = ByName(conv=nn.Conv2d(3, 4, 1), relu=nn.ReLU())
    features = taps_of(model, 'relu:input').read(model, images())
    assert torch.equal(features[0], model.conv(images()))


def test_output_and_input_of_a_module():
    model = build_model(wide_resnet()).eval()
    taps = taps_of(model, 'backbone.block2.0.bn1:input', 'backbone.block2.0.bn1')
    entering, leaving = taps.read(model, images())
    backbone = model.backbone
    expected = backbone.block1(backbone.conv1(images()))
    assert torch.equal(entering, expected)
    assert torch.equal(leaving, backbone.block2[0].bn1(expected))


def residual_block(block, x):
    """The sum of a basic block of mmpretrain, before its last ReLU, with operations that keep their inputs."""
    identity = x if block.downsample is None else block.downsample(x)
    return block.norm2(block.conv2(block.norm1(block.conv1(x)).clamp(min=0))) + identity


def test_last_call_of_a_shared_in_place_relu_counts():
    model = build_model(resnet()).train()
    taps = taps_of(model, 'backbone.layer1.1.relu:input', 'backbone.layer2.0.relu:input')
    reference = copy.deepcopy(model).backbone
    features = taps.read(model, images())
    stem = reference.norm1(reference.conv1(images())).clamp(min=0)
    first = residual_block(reference.layer1[1], residual_block(reference.layer1[0], stem).clamp(min=0))
    second = residual_block(reference.layer2[0], first.clamp(min=0))
    for feature, expected in zip(features, (first, second)):
        assert torch.allclose(feature, expected, atol=1e-6)
        assert (feature < 0).float().mean() > 0.1


@pytest.mark.parametrize('path', [
    'backbone.layer1.1.bn1',  # an in-place ReLU follows
    'backbone.layer1.1.bn2',  # the identity is added in place, and an in-place ReLU follows
    'backbone.layer1.1.relu:input',
    'backbone.layer1.1.conv2:input',
    'backbone.layer4.1.relu:input',
])
def test_what_a_model_does_in_place_afterwards_does_not_change_the_feature(path):
    model = build_model(resnet()).train()
    assert model.backbone.layer1[1].relu.inplace
    out_of_place = without_inplace(model)
    expected = []
    module_path, _, side = path.partition(':')
    module = out_of_place.get_submodule(module_path)
    if side:
        module.register_forward_pre_hook(lambda module, inputs: expected.append(inputs[0].detach().clone()))
    else:
        module.register_forward_hook(lambda module, inputs, output: expected.append(output.detach().clone()))
    plain_output = out_of_place(images())

    taps = taps_of(model, path)
    taps.start(model)
    output = model(images())
    (feature, ) = taps.take()
    assert torch.equal(feature, expected[-1])
    assert torch.equal(output, plain_output)
    if 'conv2' not in path:  # which a ReLU feeds
        assert (feature < 0).float().mean() > 0.1


def test_change_in_place_that_the_dry_run_did_not_show_is_refused():
    model = Plain(conv=nn.Conv2d(3, 4, 1), later=ChangesInTraining())
    taps = taps_of(model, 'conv', owner='teacher')
    with pytest.raises(ValueError, match='The teacher tap "conv" \\(Conv2d\\) was changed in place after it was read'):
        taps.read(model.train(), images())
    assert taps.read(model.eval(), images())[0].shape == (2, 4, 16, 16)


@pytest.mark.parametrize('path', ['backbone.layer2.1.bn1', 'backbone.layer2.1.bn2'])
def test_gradient_reaches_the_weights_before_the_tap_and_only_those(path):
    model = build_model(resnet()).train()
    taps = taps_of(model, path)
    reference, expected = without_inplace(model), []
    reference.get_submodule(path).register_forward_hook(lambda module, inputs, output: expected.append(output.clone()))
    reference(images())
    expected[0].square().sum().backward()
    taps.read(model, images())[0].square().sum().backward()
    before = {'conv1': 0, 'bn1': 0, 'layer1': 0, 'layer2': 0}
    for (name, parameter), same in zip(model.named_parameters(), reference.parameters()):
        assert (parameter.grad is None) == (same.grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, same.grad), name
            before[name.split('.')[1]] += 1
    assert before == {'conv1': 1, 'bn1': 2, 'layer1': 12, 'layer2': 15 - (0 if path.endswith('bn2') else 3)}


def test_a_model_that_builds_on_a_change_in_place_gives_what_it_gave():
    """As in an Xception whose blocks begin with a ReLU: the side branch takes what that has made of the input."""
    class Block(Plain):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.conv(self.relu(inputs)) + inputs

    model, image = Block(relu=nn.ReLU(inplace=True), conv=nn.Conv2d(3, 3, 1)), images()
    expected = model(image.clone())
    taps = taps_of(model, 'relu:input')
    taps.start(model)
    assert torch.equal(model(image.clone()), expected)
    assert torch.equal(taps.take()[0], image) and model.relu.inplace


@pytest.mark.parametrize(('path', 'message'), [
    ('backbone.block2.0.bn3', 'has no module "backbone.block2.0.bn3" to tap. Nearest: backbone.block2.0.bn'),
    ('backbone.blok2.0.bn1', 'Nearest: backbone.block2.0.bn1'),
    ('backbone.block2.7.bn1', 'Inside "backbone.block2" there are: 0.'),
    ('nonsense', 'Inside "ImageClassifier" there are: data_preprocessor, backbone, neck, head'),
    ('backbone.bn1:output', 'ends in ":output". A tap is "path.of.module" (its output) or "path.of.module:input"'),
    ('backbone.bn1:', 'The student tap "backbone.bn1:" ends in ":".'),
])
def test_unknown_path_names_what_is_near(path, message):
    with pytest.raises(ValueError) as error:
        Taps(build_model(wide_resnet()), [path], 'student')
    assert message in str(error.value)
    assert 'student' in str(error.value)


def test_module_that_does_not_run():
    model = Plain(conv=nn.Conv2d(3, 4, 1))
    model.conv.add_module('spare', nn.Identity())
    with pytest.raises(ValueError, match='The student tap "conv.spare" \\(Identity\\) was not reached'):
        taps_of(model, 'conv', 'conv.spare')


@pytest.mark.parametrize(('path', 'message'), [
    ('backbone', r'^The teacher tap "backbone" \(WideResNet\) gives a tuple, and a tap is one '),
    ('neck:input', r'^The teacher tap "neck:input" \(GlobalAveragePooling\) gives a tuple'),
    ('head.fc', r'The teacher tap "head.fc" \(Linear\) .*shape \(1, 5\), and a tap is .* map \(N, C, H, W\)'),
])
def test_what_is_no_map_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        taps_of(build_model(wide_resnet()), path, owner='teacher')


def test_dry_run_finds_channels_sizes_and_batch_norms():
    taps = taps_of(
        build_model(resnet()), 'backbone.layer1.1.relu:input', 'backbone.layer2.0.relu:input', 'backbone.layer4.1.bn1',
        'backbone.conv1', size=(48, 32))
    # In layer2.0 the batch norm of the shortcut runs last; the residual branch is what gives the margin.
    assert [(tap.channels, tap.size, tap.norm_path) for tap in taps] == [
        (8, (48, 32), 'backbone.layer1.1.bn2'), (16, (24, 16), 'backbone.layer2.0.bn2'),
        (64, (6, 4), 'backbone.layer4.1.bn1'), (8, (48, 32), None)]


@pytest.mark.parametrize(
    'path', ['backbone.block2', 'backbone.block2.0', 'backbone.block2.0.conv2', 'backbone.bn1:input'])
def test_a_batch_norm_with_a_convolution_behind_it_feeds_no_tap(path):
    tap, = taps_of(build_model(wide_resnet()), path)
    assert tap.norm_path is None


@pytest.mark.parametrize('path', ['backbone.layer2.0.bn2', 'backbone.layer2.0.conv2:input'])
def test_a_feature_that_gradient_checkpointing_cuts_off_is_refused(path):
    model = build_model(resnet(with_cp=True)).train()
    taps = taps_of(model, path)
    message = f'The student tap "{path}" .* under gradient checkpointing.* with_cp=False'
    with pytest.raises(ValueError, match=message):
        taps.read(model, images().requires_grad_())
    received = []
    taps.start(model, lambda *_: received.append(1))
    model(images().requires_grad_())
    with pytest.raises(ValueError, match=message):
        taps.take()
    taps.stop()
    assert not received
    with torch.no_grad():
        assert taps.read(model, images())[0].shape == (2, 16, 8, 8)


def test_a_feature_is_received_before_the_model_runs_on():
    model = build_model(resnet()).train()
    paths = 'backbone.layer2.0.relu:input', 'backbone.layer1.1.relu:input'
    taps, received = taps_of(model, *paths), []
    expected = taps.read(model, images())
    model.backbone.layer1[1].register_forward_hook(lambda *_: received.append('end of the block'))
    taps.start(model, lambda index, feature: received.append((index, feature.clone(), feature.data_ptr())))
    model(images())
    (first, feature, place), end, (second, other, _) = received
    assert (first, end, second) == (1, 'end of the block', 0)
    assert torch.equal(feature, expected[1]) and torch.equal(other, expected[0])
    assert taps.take() == [None, None]
    taps.stop()
    model(images())
    assert len(received) == 4  # the end of the block, once more


class Repeats(Plain):
    """Runs its one module twice in a dry run and ``times`` in training."""

    times = 1

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for _ in range(self.times if self.training else 2):
            inputs = self.conv(inputs)
        return inputs


def test_a_module_that_runs_less_often_than_in_the_dry_run_leaves_its_feature():
    model, received = Repeats(conv=nn.Conv2d(3, 3, 1)).train(), []
    taps = taps_of(model, 'conv')
    taps.start(model, lambda index, feature: received.append(feature))
    output = model(images())
    assert torch.equal(taps.take()[0], output) and not received


def test_a_module_that_runs_more_often_than_in_the_dry_run_is_refused():
    model = Repeats(conv=nn.Conv2d(3, 3, 1)).train()
    model.times = 3
    taps = taps_of(model, 'conv')
    taps.start(model, lambda *_: None)
    with pytest.raises(ValueError, match='"conv" .* runs 3 times in this forward pass, and ran 2 times in the dry run'):
        model(images())
    assert taps.read(model, images())[0].shape == (2, 3, 16, 16)  # the last call, whose number nobody needs to know


@pytest.mark.parametrize('path', ['backbone.layer2', 'backbone.layer2.1.relu:input'])
def test_outside_of_its_blocks_gradient_checkpointing_changes_nothing(path):
    gradients = []
    for with_cp in (False, True):
        model = build_model(resnet(with_cp=with_cp)).train()
        feature, = taps_of(model, path).read(model, images())
        feature.square().sum().backward()
        gradients.append(model.backbone.layer2[0].conv2.weight.grad)
    assert gradients[0].abs().sum() > 0 and torch.equal(*gradients)


@pytest.mark.parametrize('training', [True, False])
def test_dry_run_leaves_the_model_as_it_was(training):
    model = build_model(segmentor(dropout=0.5))
    model.train(training)
    model.backbone.layer1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    taps = taps_of(model, 'backbone.layer1.1.relu:input', size=(32, 32))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooked = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == ['backbone.layer1.1.relu']
    assert len(taps) == 1


def test_dry_run_that_fails_takes_its_hooks_and_modes_back():
    model = Plain(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(5)).train()
    taps = Taps(model, ['conv'], 'student')
    with pytest.raises(ValueError, match=r'The model with the Plain failed on one image \(3, 16, 16\).* input_size'):
        taps.dry_run(model, (16, 16), stop_after_last=False)
    assert model.norm.training and not model.norm._forward_hooks


def test_a_deep_copy_of_model_and_taps_reads_the_copy():
    model = build_model(resnet()).eval()
    taps = taps_of(model, 'backbone.layer1.1.relu:input', 'backbone.layer4.1.relu:input')
    copied_model, copied_taps = copy.deepcopy((model, taps))
    for parameter in copied_model.parameters():
        parameter.data.mul_(1.5)
    taps.start(model)
    features = copied_taps.read(copied_model, images())
    with pytest.raises(ValueError, match='not reached'):
        taps.take()
    changed = build_model(resnet()).eval()
    changed.load_state_dict(copied_model.state_dict())
    expected = taps_of(changed, *(tap.path for tap in taps)).read(changed, images())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features, expected))
    assert not torch.equal(features[0], taps.read(model, images())[0])


class Doubled(nn.Module):
    """Runs a module inside and doubles what it gives."""

    def __init__(self, module):
        super().__init__()
        self.inside = module

    def forward(self, x):
        return 2 * self.inside(x)


def doubled(model):
    for block in (model.backbone.layer1[1], model.backbone.layer4[1]):
        block.bn2, block.relu = Doubled(block.bn2), Doubled(block.relu)
    return model


def other_weights(model):
    model.backbone = build_model(resnet(), seed=5).eval().backbone
    return model


@pytest.mark.parametrize('side', ['bn2', 'relu:input'])
@pytest.mark.parametrize('replace', [
    nn.SyncBatchNorm.convert_sync_batchnorm, lambda model: revert_sync_batchnorm(
        nn.SyncBatchNorm.convert_sync_batchnorm(model)), fuse_conv_bn, doubled, other_weights],
    ids=['SyncBN', 'and back', 'fused', 'inside another', 'the whole backbone'])
def test_taps_follow_modules_that_are_replaced(side, replace):
    model = build_model(resnet()).eval()
    paths = [f'backbone.{block}.{side}' for block in ('layer1.1', 'layer4.1')]
    taps = taps_of(model, *paths, stop_after_last=True)
    model = replace(model)
    by_hand = {}
    for path in paths:
        module = model.get_submodule(path.partition(':')[0])
        # The last call is the one that counts.
        if side == 'bn2':
            hook = module.register_forward_hook(lambda _, __, out, path=path: by_hand.update({path: out.clone()}))
        else:
            hook = module.register_forward_pre_hook(lambda _, args, path=path: by_hand.update({path: args[0].clone()}))
        model(images())
        hook.remove()
    received = {}
    for _ in range(2):  # the second time finds nothing to do
        features = taps.read(model, images())
        taps.start(model, lambda index, feature: received.update({paths[index]: feature.clone()}))
        model(images())
        taps.take()
        taps.stop()
        for path, feature in zip(paths, features):
            assert torch.equal(feature, by_hand[path]) and torch.equal(received[path], by_hand[path])
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    assert hooks == 2 + (replace is other_weights)  # which may be a transformer, so that the image is noted


def test_a_tap_whose_module_is_gone_is_refused():
    model = build_model(resnet()).eval()
    taps = taps_of(model, 'backbone.bn1', 'backbone.layer4.1.relu:input')
    model.backbone.layer4 = nn.Sequential(nn.Identity())
    with pytest.raises(ValueError, match=(
            r'The student tap "backbone.layer4.1.relu:input" \(ReLU\) is gone: something has changed the student since '
            'it was built, and "backbone.layer4.1.relu" leads to no module any more')):
        taps.read(model, images())


def test_a_tap_whose_module_was_replaced_by_one_of_other_channels_is_refused():
    model = Plain(conv=nn.Conv2d(3, 4, 1))
    taps = taps_of(model, 'conv')
    model.conv = nn.Conv2d(3, 5, 1)
    with pytest.raises(ValueError, match=r'The student tap "conv" \(Conv2d\) gives 5 channels, and gave 4 when'):
        taps.read(model, images())


def transformer(patches=4, **changes):
    return dict(
        _scope_='mmpretrain', type='ImageClassifier', backbone=dict(
            type='VisionTransformer', img_size=16, patch_size=patches, out_type='featmap',
            arch=dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24), **changes))


@pytest.mark.parametrize('before', [
    lambda: build_model(transformer()).backbone, lambda: build_model(transformer(8, with_cls_token=False)).backbone,
    lambda: Plain(ln1=nn.Conv2d(3, 12, 4, 4))], ids=['alike', 'of other tokens', 'convolutions'])
def test_taps_follow_a_whole_new_transformer(before):
    model = build_model(transformer()).eval()
    new, model.backbone = model.backbone, before()
    taps = taps_of(model, 'backbone.ln1', stop_after_last=True)
    model.backbone = new
    for size in ((16, 16), (16, 24)):
        image = torch.randn(2, 3, *size)
        assert torch.allclose(taps.read(model, image)[0], model.backbone(image)[0], atol=1e-6)
    copied_model, copied_taps = copy.deepcopy((model, taps))
    assert torch.allclose(copied_taps.read(copied_model, image)[0], model.backbone(image)[0], atol=1e-6)


class LastChannels(Plain):
    """Gives (N, H, W, C), and only for images of its height."""

    height = None

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if self.height and inputs.shape[2:] != (self.height, self.height):
            raise RuntimeError('the image is of another size')
        return self.linear(self.conv(inputs).permute(0, 2, 3, 1))


def test_what_are_the_channels_of_a_map_of_equal_lengths_is_seen_in_a_wider_image():
    image = images()
    model = LastChannels(conv=nn.Conv2d(3, 3, 1), linear=nn.Linear(3, 16))
    tap, = taps = taps_of(model, 'linear')
    assert torch.equal(taps.read(model, image)[0], model(image).permute(0, 3, 1, 2)) and tap.size == (16, 16)
    model = Plain(conv=nn.Conv2d(3, 16, 1))
    taps = taps_of(model, 'conv')
    assert torch.equal(taps.read(model, image)[0], model(image))


def test_a_map_whose_channels_cannot_be_told_is_refused():
    model = LastChannels(conv=nn.Conv2d(3, 3, 1), linear=nn.Linear(3, 16))
    model.height = 16
    with pytest.raises(ValueError, match='The student tap "linear" .* gives a map whose height, width and channels'):
        taps_of(model, 'linear')
    model.linear = nn.Linear(3, 8)
    assert taps_of(model, 'linear').taps[0].channels == 8


def test_a_copy_follows_its_own_modules():
    model = build_model(resnet()).eval()
    taps = taps_of(model, 'backbone.layer4.1.bn2')
    copied_model, copied_taps = copy.deepcopy((model, taps))
    expected = taps.read(model, images())[0]
    doubled(copied_model)
    copied_taps.read(copied_model, images())
    last = copied_model.backbone.layer4[1].bn2
    assert (len(last._forward_hooks), len(last.inside._forward_hooks)) == (1, 0)
    assert len(model.backbone.layer4[1].bn2._forward_hooks) == 1
    assert torch.equal(taps.read(model, images())[0], expected)


def test_a_pass_ends_after_the_last_tap_and_not_before_its_last_call():
    shared = Counting()
    model = Plain(conv=nn.Conv2d(3, 4, 1), first=nn.Sequential(shared), middle=nn.ReLU(), behind=Counting())
    model.second = nn.Sequential(shared)
    model.end = Counting()
    # Order of the run: conv, first (shared), middle, behind, second (shared), end.
    taps = taps_of(model, 'first.0', 'conv', stop_after_last=True)
    shared.calls = model.behind.calls = model.end.calls = 0
    with torch.no_grad():
        last, conv = taps.read(model, images())
    assert (shared.calls, model.behind.calls, model.end.calls) == (2, 1, 0)
    assert torch.equal(conv, model.conv(images())) and torch.equal(last, conv.clamp(min=0))


def test_a_pass_that_fails_leaves_no_tap_behind_that_stops_or_keeps():
    model = Plain(conv=nn.Conv2d(3, 4, 1), fragile=Counting(), end=nn.ReLU())
    taps = taps_of(model, 'conv', 'end', owner='teacher', stop_after_last=True)
    hook = model.fragile.register_forward_hook(lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match='must match the size'):
        taps.read(model, images())
    hook.remove()
    assert model(images()).shape == (2, 4, 16, 16)
    assert [tap._feature for tap in taps] == [None, None]


def test_a_pass_that_may_not_stop_runs_to_its_end():
    model = Plain(conv=nn.Conv2d(3, 4, 1), behind=Counting())
    taps = taps_of(model, 'conv')
    model.behind.calls = 0
    taps.read(model, images())
    assert model.behind.calls == 1


@pytest.mark.parametrize('path', ['backbone.layer1.1.relu:input', 'backbone.layer1.1.bn1'])
def test_nothing_is_kept_after_the_features_are_taken(path):
    model = build_model(resnet()).train()
    taps = taps_of(model, path)
    features = taps.read(model, images())
    kept = weakref.ref(features[0])
    assert kept() is not None
    del features
    gc.collect()
    assert kept() is None


def test_nothing_is_read_outside_of_start_and_take():
    model = build_model(resnet()).eval()
    taps = taps_of(model, 'backbone.layer1.1.bn1')
    taps.read(model, images())
    model(images())  # as a validation does
    assert list(taps)[0]._feature is None


def test_each_read_starts_afresh():
    model = build_model(wide_resnet()).eval()
    taps = taps_of(model, 'backbone.bn1', stop_after_last=True)
    first = taps.read(model, images())[0]
    other = taps.read(model, images() + 1)[0]
    assert not torch.equal(first, other)
    assert torch.equal(taps.read(model, images())[0], first)
