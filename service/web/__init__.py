"""The front end: REST and the page. It imports neither Beam nor a workload."""
