"""A process in which this package is not installed, as of people who are only given an exported student."""

# To be run first. Without the operators of a full mmcv there are some that do nothing, so that the packages import.
WITHOUT_OVERHAUL = """
import importlib.util, sys
from importlib.machinery import ModuleSpec
from types import ModuleType

sys.modules['overhaul'] = None
if importlib.util.find_spec('mmcv._ext') is None:
    class Operators(ModuleType):
        def __getattr__(self, name):
            if name.startswith('__'):
                raise AttributeError(name)
            return print
    operators = sys.modules['mmcv._ext'] = Operators('mmcv._ext')
    operators.__spec__ = ModuleSpec('mmcv._ext', loader=None)
"""
