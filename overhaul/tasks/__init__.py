"""What differs between kinds of pipelines. Nothing else in the package knows it."""
