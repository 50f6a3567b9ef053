"""What the command `overhaul` can do, a file for each: its command line, and which parts of the package do the work."""
