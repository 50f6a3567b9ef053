"""What a person sees of a training, and what only its log file has."""


import pytest

from overhaul.commands import train

CONFIG = 'overhaul::digits_wrn16_2_wrn10_1.py'
FOR_THE_FILE = ['System environment:', 'optim_wrapper=dict(', 'Hooks will be executed']


@pytest.mark.parametrize('flags', [[], ['--verbose']])
def test_a_terminal_shows_what_a_person_wants_to_know(flags, tmp_path, capfd):
    train.main([CONFIG, *flags, '--work-dir', str(tmp_path), '--cfg-options', f'experiment_name={tmp_path}',
                'train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'val_dataloader.dataset.indices=10'])
    shown = ''.join(capfd.readouterr())
    (log, ) = tmp_path.glob('*/*.log')
    assert f'the config are in {log}' in shown
    for name in ('Teacher: ', 'Distillation: ', 'Step 0: ', 'Student: best', 'Iter(train)'):
        assert name in shown and name in log.read_text()
    for name in FOR_THE_FILE:
        assert name in log.read_text() and (name in shown) == bool(flags)
    before = shown[:shown.index('Iter(train)')]
    assert flags or len(before.splitlines()) < 25
    assert flags or not any(name in log.read_text() for name in ('FileClient', 'HardDiskBackend'))
