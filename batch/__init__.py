"""The framework: what a batch process is, how it becomes a pipeline, how that is launched."""
