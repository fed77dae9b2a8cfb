"""An investor's page: tables and two plots in one self-contained HTML file."""

import datetime
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import jinja2

from ledgerbeam.pipelines.investor_plots import Bar, chart
from ledgerbeam.rules.closing.delinquency import BUCKETS
from ledgerbeam.rules.currency import to_decimal
from ledgerbeam.rules.remittance.pool_totals import LINE_TOTALS, PoolTotal
from ledgerbeam.rules.remittance.report_line import MonthMoney

MAX_REJECTIONS = 20

_TYPES = {
    "A/A": "actual/actual: interest and principal as collected",
    "S/A": "scheduled/actual: interest by schedule, principal as collected",
    "S/S": "scheduled/scheduled: interest and principal by schedule",
}
_BLUE, _RED, _GREY = "#1f5fa8", "#b3423a", "#a9b4c0"
_BUCKET_COLOURS = (_GREY, "#f2c14e", "#ea8f3c", "#d65f3a", "#a3232b")
_CHANGES = {
    "scheduled_principal": "scheduled principal",
    "curtailment": "curtailments",
    "payoff": "payoffs",
}
BUCKET_WORDS = ("current", "30 days", "60 days", "90 days", "120 days +")


class Header(NamedTuple):
    """What a page says about its investor; fees in percent a year."""

    investor_id: str
    name: str
    remittance_type: str
    servicing_fee: Decimal
    guaranty_fee: Decimal
    business_date: datetime.date


class Sums(NamedTuple):
    """Sums over an investor's pools of one currency; fields as in `PoolTotal` and `MonthMoney`."""

    currency: str
    pools: list[PoolTotal]
    loans: int
    amounts: dict[str, int]
    delinquent: list[int]
    delinquent_balance: list[int]
    money: MonthMoney


def render(
    header: Header,
    pools: Sequence[PoolTotal],
    money: Mapping[str, Mapping[str, int]],
    rejections: Sequence[tuple[str, str]],
    lines_file: str,
) -> bytes:
    """The page, in UTF-8.

    Args:
        header: what the page says about the investor.
        pools: totals of the investor's pools.
        money: amounts by the names of `MonthMoney` and then by `NAME_CURRENCY`, in minor units.
        rejections: ids of loans, each with what was rejected.
        lines_file: name of the file of lines beside the page.
    """
    by_currency = [
        sums_of(currency, pools, money)
        for currency in sorted({name[len("received_") :] for name in money["received"]})
    ]
    shown = [sums for sums in by_currency if sums.loans]
    page = _TEMPLATE.render(
        header=header,
        type_words=_TYPES[header.remittance_type],
        by_currency=by_currency,
        buckets=BUCKET_WORDS,
        rejections=rejections[:MAX_REJECTIONS],
        more_rejections=max(0, len(rejections) - MAX_REJECTIONS),
        lines_file=lines_file,
        roll_forward="".join(map(roll_forward, shown)),
        delinquency="".join(map(delinquency, shown)),
    )
    return page.encode()


def sums_of(
    currency: str, pools: Sequence[PoolTotal], money: Mapping[str, Mapping[str, int]]
) -> Sums:
    """Add up an investor's pools of one currency."""
    own = [pool for pool in pools if pool.currency == currency]
    return Sums(
        currency,
        own,
        sum(pool.loans for pool in own),
        {name: sum(pool.amounts[name] for pool in own) for name in LINE_TOTALS},
        [sum(pool.delinquent[at] for pool in own) for at in range(len(BUCKETS))],
        [sum(pool.delinquent_balance[at] for pool in own) for at in range(len(BUCKETS))],
        MonthMoney(*(money[name].get(f"{name}_{currency}", 0) for name in MonthMoney._fields)),
    )


def roll_forward(sums: Sums) -> str:
    """The plot that leads from the beginning balance, through repayments, to the ending balance."""
    beginning = to_decimal(sums.amounts["beginning_balance"], sums.currency)
    levels = [beginning]
    for name in _CHANGES:
        levels.append(levels[-1] - to_decimal(sums.amounts[name], sums.currency))
    lowest, highest = min(levels), max(levels)
    margin = (highest - lowest) / 4 or highest / 20 or Decimal(1)
    bottom = max(Decimal(0), lowest - margin)
    # From here on the amounts are lengths in a drawing, so floats are fine.
    start, *heights = (float(level) for level in (bottom, *levels))
    bars = [
        Bar("beginning balance", start, heights[0], _BLUE, (_whole(beginning),)),
        *(
            Bar(words, before, after, _GREY if after <= before else _RED,
                (_whole(levels[at] - levels[at - 1]),))
            for at, (words, before, after)
            in enumerate(zip(_CHANGES.values(), heights, heights[1:], strict=False), 1)
        ),
        Bar("ending balance", start, heights[-1], _BLUE, (_whole(levels[-1]),)),
    ]  # fmt: skip
    note = "the axis does not begin at 0" if bottom else ""
    axis = (start, float(highest + margin))
    return chart(f"Balance, {sums.currency}", note, bars, axis, "")


def delinquency(sums: Sums) -> str:
    """The plot of the ending balance by payments missed, without the current part."""
    whole = sums.amounts["ending_balance"] or 1
    shares = [100 * balance / whole for balance in sums.delinquent_balance]
    bars = [
        Bar(words, 0, share, colour, (
            f"{share:.2f}%",
            f"{loans:,} loans, {_whole(to_decimal(balance, sums.currency))}",
        ))
        for words, share, colour, loans, balance in zip(
            BUCKET_WORDS, shares, _BUCKET_COLOURS, sums.delinquent, sums.delinquent_balance,
            strict=True,
        )
    ]  # fmt: skip
    axis = (0, 1.5 * max([*shares[1:], 0.01]))
    title = f"Missed payments, {sums.currency}: share of the ending balance"
    return chart(title, f"{shares[0]:.2f}% is current", bars[1:], axis, "%")


def _whole(amount: Decimal) -> str:
    """An amount to the unit of its currency, for plots."""
    return f"{round(amount):,}"


def _money(minor_units: int, currency: str) -> str:
    """An amount where the currency stands above or beside it."""
    return f"{to_decimal(minor_units, currency):,f}"


def _percent(rate: Decimal) -> str:
    return f"{rate.normalize():f}%"


_ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters |= {"money": _money, "percent": _percent}
_TEMPLATE = _ENVIRONMENT.from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ header.name }}: remittance, {{ header.business_date.strftime("%B %Y") }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #27313b; max-width: 76rem;
  margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p.sub { color: #67727e; margin: .2rem 0 0; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0 0; }
.card { border: 1px solid #dde2e7; border-radius: 6px; padding: .7rem 1.1rem; min-width: 11rem; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.card span { color: #67727e; font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #27313b; font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid #e8ebee; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; }
tr.sum td { font-weight: 600; border-top: 1px solid #27313b; border-bottom: none; }
svg { display: block; max-width: 100%; height: auto; margin: .6rem 0; fill: #27313b; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } table { font-size: .62rem; } svg { break-inside: avoid; } }
</style>
</head>
<body>
<h1>{{ header.name }}</h1>
<p class="sub">Investor {{ header.investor_id }} · remittance for
{{ header.business_date.strftime("%B %Y") }}, up to {{ header.business_date.isoformat() }}<br>
{{ type_words }} · servicing fee {{ header.servicing_fee | percent }}, guaranty fee
{{ header.guaranty_fee | percent }} a year</p>
{% for sums in by_currency %}
<div class="cards">
<div class="card"><span>Remittance due, {{ sums.currency }}</span>
<b>{{ sums.amounts.remittance | money(sums.currency) }}</b></div>
<div class="card"><span>Ending balance, {{ sums.currency }}</span>
<b>{{ sums.amounts.ending_balance | money(sums.currency) }}</b></div>
<div class="card"><span>Loans, {{ sums.currency }}</span>
<b>{{ "{:,}".format(sums.loans) }}</b></div>
</div>
{% endfor %}
{% for sums in by_currency %}
<h2>Remittance by pool, {{ sums.currency }}</h2>
<div class="scroll"><table>
<tr><th>Pool</th><th>Loans</th><th>Beginning<br>balance</th><th>Scheduled<br>principal</th>
<th>Curtail-<br>ments</th><th>Payoffs</th><th>Ending<br>balance</th><th>Interest<br>due</th>
<th>Principal<br>due</th><th>Remittance<br>due</th><th>Guaranty<br>fee</th>
<th>Servicing<br>fee</th></tr>
{% for pool in sums.pools + [sums] %}
<tr{% if loop.last %} class="sum"{% endif %}>
<td>{{ "All pools" if loop.last else pool.pool_id }}</td><td>{{ "{:,}".format(pool.loans) }}</td>
{% for name in ("beginning_balance", "scheduled_principal", "curtailment", "payoff",
  "ending_balance", "interest", "principal", "remittance", "guaranty_fee", "servicing_fee") %}
<td>{{ pool.amounts[name] | money(sums.currency) }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endfor %}
<p class="sub">Balances are of the whole loans; interest, principal and fees the investor's share.
Beginning balance less scheduled principal, curtailments and payoffs is the ending balance.</p>
<h2>Balance roll-forward</h2>
{{ roll_forward | safe }}
<h2>Delinquency</h2>
{{ delinquency | safe }}
{% for sums in by_currency %}
<h2>Delinquency by pool, {{ sums.currency }}</h2>
<div class="scroll"><table>
<tr><th>Pool</th>{% for bucket in buckets %}<th>{{ bucket }}<br>loans</th>
<th>{{ bucket }}<br>balance</th>{% endfor %}</tr>
{% for pool in sums.pools + [sums] %}
<tr{% if loop.last %} class="sum"{% endif %}>
<td>{{ "All pools" if loop.last else pool.pool_id }}</td>
{% for bucket in buckets %}
<td>{{ "{:,}".format(pool.delinquent[loop.index0]) }}</td>
<td>{{ pool.delinquent_balance[loop.index0] | money(sums.currency) }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endfor %}
<h2>Money received in the month</h2>
<div class="scroll"><table>
<tr><th>Currency</th><th>Received</th><th>Applied</th><th>Change of<br>suspense</th>
<th>Rejected</th><th>Reversed</th></tr>
{% for sums in by_currency %}
<tr><td>{{ sums.currency }}</td>
{% for name in ("received", "applied", "suspense", "rejected", "reversed") %}
<td>{{ sums.money[name] | money(sums.currency) }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
<p class="sub">Received is applied, plus the change of what is held in suspense, plus rejected,
plus reversed: payments taken back, whenever they had been made.</p>
{% if rejections %}
<h2>Rejected transactions</h2>
<div class="scroll"><table>
<tr><th>Loan</th><th class="text">What and why</th></tr>
{% for loan_id, words in rejections %}
<tr><td>{{ loan_id }}</td><td class="text">{{ words }}</td></tr>
{% endfor %}
</table></div>
{% if more_rejections %}
<p class="sub">{{ "{:,}".format(more_rejections) }} more loans have some: see the lines.</p>
{% endif %}
{% endif %}
<h2>Lines</h2>
<p>All loans, with their months line by line: <a href="{{ lines_file }}">{{ lines_file }}</a></p>
</body>
</html>
""")
