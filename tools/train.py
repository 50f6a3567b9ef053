"""The command `overhaul train`, in a clone."""

from overhaul.commands.train import main

if __name__ == '__main__':
    main()
