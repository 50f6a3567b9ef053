"""What people look at: pictures, logs, statistics, progress."""
