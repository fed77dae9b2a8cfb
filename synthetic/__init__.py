"""Made-up input: days of trades and portfolios of loans, of any size."""
