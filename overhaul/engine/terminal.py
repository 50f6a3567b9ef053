"""What a training says on a terminal. Its log file has more."""

import logging

from mmengine.logging import MMLogger
from mmengine.runner import Runner

# How messages of mmengine 0.10.7 begin that only the log file has.
_FOR_THE_FILE = (
    f'\n{"-" * 60}\nSystem environment', 'Config:\n', 'Hooks will be executed', 'Distributed training is not used',
    'Exp name: ')
# Those of its own old names, which it uses itself.
_OF_NO_USE = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')


class TerminalRunner(Runner):
    """A runner that tells a terminal what a person wants to know at the start, and all the rest its log file.

    Left out on the terminal are the environment, the config and the order of the hooks.
    """

    def build_logger(self, *arguments: object, **keywords: object) -> MMLogger:
        """Build the logger. Called by the base class."""
        logger = super().build_logger(*arguments, **keywords)
        logger.addFilter(_is_of_use)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_for_people)
        return logger


def _is_of_use(record: logging.LogRecord) -> bool:
    record.msg = str(record.msg).replace('GPU number: ', 'Number of processes: ')  # which it is, on a CPU too
    return not record.msg.startswith(_OF_NO_USE)


def _is_for_people(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_FOR_THE_FILE)
