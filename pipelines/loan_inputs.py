"""The inputs that loan workloads share: loans, and the transactions that came in for them."""

from ledgerbeam.batch.keyed_process import RowInput
from ledgerbeam.io.contract import Contract


def loan_inputs(
    loans: Contract, transactions: Contract, *, positions: bool = False
) -> tuple[RowInput, ...]:
    """A row a loan, and its transactions by their ids; totals by currency.

    Args:
        loans: with `loan_id`, `balance` and `currency`.
        transactions: with `loan_id`, `transaction_id`, `amount` and `currency`.
        positions: whether it is asked where transactions stood.
    """
    return (
        RowInput(
            "loans",
            loans,
            order="loan_id",
            amounts=("balance",),
            currency="currency",
            ids=("loan_id",),
        ),
        RowInput(
            "transactions",
            transactions,
            order="transaction_id",
            amounts=("amount",),
            currency="currency",
            positions=positions,
        ),
    )
