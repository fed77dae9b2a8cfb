"""One module a workload: its parameters, its definition, its `main`."""
