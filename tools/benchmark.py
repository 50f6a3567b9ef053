"""The command `overhaul benchmark`, in a clone."""

from overhaul.commands.benchmark import main

if __name__ == '__main__':
    main()
