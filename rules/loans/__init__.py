"""Loans on a book: terms, states, transactions and entries, in plain Python and in columns."""
