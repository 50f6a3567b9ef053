"""The command `overhaul export`, in a clone."""

from overhaul.commands.export import main

if __name__ == '__main__':
    main()
