from overhaul.reports.progress import progress


def test_in_a_file_nothing_is_added(capsys, monkeypatch):
    monkeypatch.delenv('FORCE_COLOR', raising=False)
    for number in progress(range(3), 'Runs'):
        print(number)
    assert capsys.readouterr().out == '0\n1\n2\n'


def test_on_a_terminal_there_is_a_bar_below_the_lines(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')  # which rich takes for a terminal
    items = iter('abc')
    lines = []
    for item in progress(items, 'Runs', total=3):
        print(f'line {item}')
        lines.append(item)
    out = capsys.readouterr().out
    assert lines == ['a', 'b', 'c'] and all(f'line {item}' in out for item in lines)
    assert 'Runs' in out and '100%' in out


def test_only_the_first_process_shows_it(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setattr('mmengine.dist.is_main_process', lambda: False)
    assert list(progress('ab', 'Runs')) == ['a', 'b']
    assert 'Runs' not in capsys.readouterr().out
