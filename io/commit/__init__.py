"""The commit protocol: what an attempt writes, which attempt wins, and what is published."""
