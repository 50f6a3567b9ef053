"""README.md and docs/*.md: their commands parse, their configs and links exist, and nothing is left to be filled in."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from overhaul import own_configs

ROOT = Path(__file__).parents[1]
PAGES = {str(page.relative_to(ROOT)): page.read_text()
         for page in [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]}
SHIPPED = {path.name for path in (ROOT / 'configs').glob('*.py')}
# What a script starts, and the place of the number of GPUs among its arguments.
SCRIPTS = {'tools/dist_train.sh': ('train.py', 1), 'tools/dist_test.sh': ('test.py', 2)}


def commands(text):
    """Each command of the page that runs something of this repository, in a block or within a line, in words."""
    blocks = re.findall(r'^```bash\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    lines += re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE))
    for line in lines:
        for part in line.split('&&'):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):  # the environment
                words.pop(0)
            program = words[words[0] == 'python':][:1] if words else []
            if program and re.match(r'(tools|docs|tests)/\w+\.(py|sh)$', program[0]) and len(words) > 1:
                yield [program[0], *words[words.index(program[0]) + 1:]]


COMMANDS = sorted({(page, *command) for page, text in PAGES.items() for command in commands(text)})


def parse(tool, arguments):
    """Let a tool read its command line, and no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool, *arguments])
        command = runpy.run_path(str(ROOT / 'tools' / tool))['main'].__module__
        return sys.modules[command].parse_arguments()


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_a_command_is_one_that_there_is(command):
    page, program, *arguments = command
    assert (ROOT / program).is_file()
    for word in arguments:
        if re.match(r'(configs|docs|tests|overhaul)/', word) and '*' not in word:
            assert (ROOT / word).exists(), word
        if word.startswith(own_configs.PREFIX):
            assert Path(own_configs.own_config(word)).is_file(), word
    if program in SCRIPTS:
        tool, place = SCRIPTS[program]
        assert arguments.pop(place).isdigit()
        parse(tool, arguments)
    elif re.match(r'tools/\w+\.py$', program):
        parse(Path(program).name, arguments)


def test_commands_were_found():
    """Else the test above proves nothing."""
    programs = {command[1] for command in COMMANDS}
    assert {'tools/train.py', 'tools/dist_train.sh', 'tools/export_student.py', 'tools/list_taps.py'} <= programs


@pytest.mark.parametrize('page', PAGES)
def test_a_link_leads_somewhere(page):
    text = re.sub(r'^```.*?^```', '', PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?:|mailto:', target):
            continue
        path, _, anchor = target.partition('#')
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def anchors(text):
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_nothing_is_left_to_be_filled_in(page):
    """Placeholders have been written as NOT_DONE, DIGITS_SECONDS, TODO and the like."""
    prose = re.sub(r'`[^`]*`', '', re.sub(r'^```bash.*?^```', '', PAGES[page], flags=re.DOTALL | re.MULTILINE))
    assert not re.findall(r'\b(?:[A-Z]+_[A-Z_]+[A-Z]|TODO|TBD|FIXME|XXX|EXPORT\d)\b', prose)


@pytest.mark.parametrize('page', PAGES)
def test_a_file_that_is_named_is_there(page):
    for path in set(re.findall(r'\b(?:overhaul|tests|tools)/[\w/]+\.(?:py|sh)\b', PAGES[page])):
        assert (ROOT / path).is_file(), path
    for name in set(re.findall(r'\bconfigs/(\w+\.py)\b', PAGES[page])):
        assert name in SHIPPED, name


# All modules but what several hooks ask of a runner.
MODULES = sorted({str(path.relative_to(ROOT)) for path in ROOT.glob('overhaul/**/*.py') if path.name[0] != '_'}
                 - {'overhaul/engine/runner.py'})


@pytest.mark.parametrize('module', MODULES)
def test_where_to_change_it_is_told_of_each_module_or_its_folder(module):
    section = PAGES['README.md'].partition('## Where do I change')[2].partition('\n## ')[0]
    linked = re.findall(r'\((overhaul[^)]*)\)', ''.join(re.findall(r'^\|.*', section, re.MULTILINE)))
    assert {module, *map(str, Path(module).parents)} & set(linked)
