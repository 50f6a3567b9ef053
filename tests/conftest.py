"""Being here is all this file does: pytest puts its folder on the import path, for `from golden import ...`."""
