"""What is read and written: configs, checkpoints, exported students."""
