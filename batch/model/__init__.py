"""The vocabulary of runs: statuses, events, outcomes, service levels. No Beam, no storage."""
