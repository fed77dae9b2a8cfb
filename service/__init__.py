"""The front door: a REST service, queues by kind, worker nodes, and a page to watch and steer."""
