"""What the contracts of loans say: due dates, day counts, how interest and principal are paid."""
