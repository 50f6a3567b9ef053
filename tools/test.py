"""The command `overhaul test`, in a clone."""

from overhaul.commands.test import main

if __name__ == '__main__':
    main()
