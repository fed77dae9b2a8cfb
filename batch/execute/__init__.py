"""Code that keyed and page processes share: execution of components, control, publishing."""
