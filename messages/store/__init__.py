"""Where messages wait: the tables, and what senders do in transactions of their own."""
