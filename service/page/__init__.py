"""What the page shows of runs: worked out from records and drawn, without HTTP."""
