"""The command `overhaul plot`, in a clone."""

from overhaul.commands.plot import main

if __name__ == '__main__':
    main()
