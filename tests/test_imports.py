import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import overhaul

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'overhaul'
# From the top floor down, the rooms and single modules of the package; '' is the package itself.
FLOORS = [['__main__'], ['cli'], ['commands'], ['engine.hooks'], ['engine'], ['reports'], ['method'], ['files'],
          ['datasets'], ['tasks', 'models'], ['errors'], ['registry'], ['compat'], ['operators'], [''],
          ['own_configs', 'whole']]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob('*.py')}


def imports(name):
    """What a module imports of this package, wherever in the file."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name} imports relatively'
            members = {f'{node.module}.{alias.name}' for alias in node.names}
            # `from overhaul import compat` takes a module, `from overhaul.method.taps import Taps` a name of one.
            found |= (members & MODULES.keys()) or {node.module}
    return {module for module in found & MODULES.keys() if module != name}


def registered():
    """Every class that the source registers: (registry, name, module)."""
    return [
        (decorator.func.value.id, node.name, module)
        for module, tree in MODULES.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, 'attr', '') == 'register_module']


def run_fresh(script):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=120)


def room_of(name):
    """The room of a module: the part of its name behind `overhaul`, two parts where the floors list it so."""
    parts = name.split('.')[1:] or ['']
    inner = '.'.join(parts[:2])
    return inner if [inner] in FLOORS else parts[0]


def test_imports_go_down_the_floors_only():
    floors = {room: height for height, rooms in enumerate(reversed(FLOORS)) for room in rooms}
    assert {room_of(name) for name in MODULES} == floors.keys()
    up = [
        f'{name} imports {module}' for name in MODULES for module in imports(name)
        if room_of(name) != room_of(module) and floors[room_of(name)] <= floors[room_of(module)]]
    assert not up


def test_the_parts_of_the_method_know_neither_each_other_nor_what_uses_them():
    for part in ('losses', 'margins', 'connectors', 'taps'):
        assert imports(f'overhaul.method.{part}') <= {
            'overhaul.registry', 'overhaul.tasks', 'overhaul.method.memory_format', 'overhaul.method.tokens'}, part


def test_the_docstring_of_the_method_names_all_its_files():
    listed = re.findall(r'^\d+\. ``(\w+)``', ast.get_docstring(MODULES['overhaul.method']), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (PACKAGE / 'method').glob('[!_]*.py'))


def test_nothing_imports_in_a_circle():
    TopologicalSorter({name: imports(name) for name in MODULES}).prepare()  # raises on a circle


def test_every_public_name_resolves():
    assert len(overhaul.__all__) == len(set(overhaul.__all__)) > 5
    for name in overhaul.__all__:
        assert getattr(overhaul, name) is not None
    assert overhaul.partial_l2 is import_module('overhaul.method.losses').partial_l2
    with pytest.raises(AttributeError, match="module 'overhaul' has no attribute 'Distiller'"):
        overhaul.Distiller  # noqa: B018


def test_public_names_are_what_the_source_says():
    for name, module in overhaul._PUBLIC.items():
        assert hasattr(import_module(f'overhaul.{module}'), name)
        assert getattr(overhaul, name).__module__.startswith(f'overhaul.{module}')


def test_a_config_may_name_every_registered_class_by_importing_it_from_the_package():
    missing = {name for registry_name, name, _ in registered() if registry_name != 'TASKS'} - overhaul._PUBLIC.keys()
    assert not missing


def test_the_bare_import_is_light():
    run = run_fresh('import sys, overhaul; print(overhaul.__version__, "torch" in sys.modules)')
    assert run.stdout.strip() == f'{overhaul.__version__} False', run.stderr


def test_a_config_alone_finds_every_component_without_custom_imports():
    # As mmengine does when it reads a config, in a process where nothing of the package was imported by name.
    script = f"""
import sys
from mmengine import registry
from mmengine.config import Config
for name, component, _ in {[each for each in registered() if each[0] != 'TASKS']!r}:
    found = getattr(registry, name).get('overhaul.' + component)
    assert found is not None and found.__name__ == component, (name, component)
cfg = Config.fromfile('configs/digits_wrn16_2_wrn10_1.py')
assert 'custom_imports' not in cfg
registry.init_default_scope(cfg.default_scope)
model = registry.MODELS.build(cfg.model)
print(type(model).__name__, type(model.connectors[0]).__name__, type(model.margins[0]).__name__)
"""
    run = run_fresh(script)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == 'OverhaulDistiller ConvBNConnector MarginReLU'
