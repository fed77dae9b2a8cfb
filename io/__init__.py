"""Datasets: contracts, readers, object storage, the commit protocol."""
