"""The command `overhaul compare`, in a clone."""

from overhaul.commands.compare import main

if __name__ == '__main__':
    main()
