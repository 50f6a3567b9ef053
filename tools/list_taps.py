"""The command `overhaul taps`, in a clone."""

from overhaul.commands.taps import main

if __name__ == '__main__':
    main()
