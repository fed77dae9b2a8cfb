"""Repayment schedules of loans as they are lent."""
