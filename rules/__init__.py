"""Business rules on Arrow tables and plain Python: no Beam, no files, no clock.

A rule has up to three forms, which its names tell apart:

| name | computes | takes and gives |
| --- | --- | --- |
| `close` | one component, loan or period | Python values: integers, decimals, fractions, dates |
| `close_many` | many at once, vectorised | Arrow tables, numpy arrays, or tuples of those |
| `close_each` | many, calling `close` for one after the other | the same as `close_many` |

All forms give the same results, to the last digit: the plain one is the rule as it is read, and
what the vectorised one is tested against. A form that is long has a module of its own, named like
the function; a short one follows the plain form in its module.

Amounts are decimals or integers of the currency's minor unit, never floats. Folders import
downward only: `remittance`, `closing`, `loans`, `schedules`, `terms`, `calendar`; `delivery` stands
alone. All may import the modules of this folder.
"""
