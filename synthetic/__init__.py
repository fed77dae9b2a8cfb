"""Made-up input: a day of trades of any size."""
