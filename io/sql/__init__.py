"""SQL databases: pages, ranges of keys, column types, writes in a component's own transaction."""
