"""The page of a comparison, one self-contained HTML file."""

from collections.abc import Mapping
from typing import Any

import jinja2

_WORDS = {
    "same": "the same on both sides",
    "changed": "changed",
    "known": "changed as known",
    "only_before": "only before",
    "only_after": "only after",
}


def render(content: Mapping[str, Any]) -> bytes:
    """The page, in UTF-8.

    Args:
        content: what `ledgerbeam.pipelines.comparison.files.comparison` gives.
    """
    rows = content["rows"]
    is_equal = not (rows["changed"] or rows["only_before"] or rows["only_after"])
    noise = content["baseline"]
    is_noisy = noise is not None and noise["rows"] > 0
    return _TEMPLATE.render(c=content, words=_WORDS, is_equal=is_equal, is_noisy=is_noisy).encode()


def _thousands(amount: str) -> str:
    """An amount with its digits in groups: -1234.50 is -1,234.50."""
    sign, digits = ("-", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, point, decimals = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{decimals}"


_ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["thousands"] = _thousands
_TEMPLATE = _ENVIRONMENT.from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Comparison, {{ c.business_date }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
  padding: 0 1.5rem; color: #27313b; background: #fff; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p.sub, td.sub, span.sub { color: #5b6671; } code { overflow-wrap: anywhere; }
.verdict { display: inline-block; padding: .3rem .8rem; border-radius: 6px; font-weight: 600;
  margin: .8rem 0; background: #b3423a; color: #fff; }
.verdict.equal { background: #1e7145; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #dde2e7; }
th { border-bottom: 2px solid currentColor; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.texts td, table.texts th { text-align: left; } tr.expired td { color: #b3423a; }
table.texts td:last-child, table.texts th:last-child { text-align: right; }
td.bar { width: 14rem; text-align: left; }
td.bar span { display: block; height: .7rem; min-width: 1px; background: #4a7fb5; }
@media (prefers-color-scheme: dark) { body { color: #d8dee5; background: #161b20; }
  p.sub, td.sub, span.sub { color: #99a5b1; } th, td { border-color: #36404a; } }
</style>
</head>
<body>
<h1>Comparison, {{ c.business_date }}</h1>
<p class="sub">before <code>{{ c.before }}</code><br>after <code>{{ c.after }}</code><br>
rows are told apart by {{ c["keys"] | join(", ") }}</p>
<p class="verdict{% if is_equal and not is_noisy %} equal{% endif %}">
{% if is_noisy %}The baseline has noise: differences may be noise too
{% else %}{{ "No unknown differences" if is_equal else "There are differences" }}{% endif %}</p>
{% if c.baseline %}
<p>Baseline: the first side was made once more, and
<strong>{{ "{:,}".format(c.baseline.rows) if c.baseline.rows else "none" }}</strong> of
{{ "{:,}".format(c.baseline.of) }} rows came out different.<br>
<span class="sub">See <code>{{ c.baseline.uri }}</code>, SHA-256
<code>{{ c.baseline.sha256[:16] }}…</code></span></p>
{% endif %}
<h2>Rows</h2>
<table>
<tr><th>Rows</th><th>Count</th></tr>
{% for status, count in c.rows.items() %}
<tr><td>{{ words[status] }}</td><td>{{ "{:,}".format(count) }}</td></tr>
{% endfor %}
</table>
{% if c.columns %}
<h2>Columns</h2>
<table>
<tr><th>Column</th><th>Rows that differ</th></tr>
{% for name, count in c.columns.items() %}
<tr><td>{{ name }}</td><td>{{ "{:,}".format(count) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if c.known %}
<h2>Known differences</h2>
<div class="scroll"><table class="texts">
<tr><th>Column</th><th>{{ c.customer }}</th><th>Reason</th><th>Owner</th><th>Until</th>
<th>Rows</th></tr>
{% for known in c.known %}
<tr{% if not known.is_in_force %} class="expired"{% endif %}><td>
{{ "row missing" if known.column == "*" else known.column }}</td>
<td>{{ "all" if known.customer == "*" else known.customer }}</td><td>{{ known.reason }}</td>
<td>{{ known.owner }}</td>
<td>{{ known.expires }}{% if not known.is_in_force %}, expired{% endif %}</td>
<td>{{ "{:,}".format(known.rows) }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
{% for side, names in c.one_sided_columns.items() if names %}
<p class="sub">Not compared, since only {{ side }} has them: {{ names | join(", ") }}</p>
{% endfor %}
{% for money in c.money %}
<h2>{{ money.amount }}{% if money.currency %}, {{ money.currency }}{% endif %}</h2>
<table>
<tr><th>Change, after less before</th><th>{{ money.currency or "Sum" }}</th></tr>
<tr><td>net</td><td>{{ money.net | thousands }}</td></tr>
<tr><td>without signs</td><td>{{ money.gross | thousands }}</td></tr>
</table>
{% if money.sizes %}
<h3>By size</h3>
<table>
<tr><th>Changes of at least</th><th>Rows</th><th></th></tr>
{% for size in money.sizes %}
<tr><td>{{ size["from"] | thousands }}</td><td>{{ "{:,}".format(size.changes) }}</td>
<td class="bar"><span style="width: {{ 100 * size.changes // (money.sizes | map(attribute="changes")
| max) }}%"></span></td></tr>
{% endfor %}
</table>
<h3>Largest, by {{ c.customer }}</h3>
<div class="scroll"><table>
<tr><th>{{ c.customer }}</th><th>Rows</th><th>Net</th><th>Without signs</th></tr>
{% for row in money.customers %}
<tr><td>{{ row.customer }}</td><td>{{ "{:,}".format(row["keys"]) }}</td>
<td>{{ row.change | thousands }}</td><td>{{ row.gross | thousands }}</td></tr>
{% endfor %}
</table></div>
<h3>Largest, by row</h3>
<div class="scroll"><table>
<tr><th>{{ c["keys"] | join(", ") }}</th><th>{{ c.customer }}</th><th>Change</th></tr>
{% for row in money.largest %}
<tr><td>{{ row.key }}</td><td>{{ row.customer }}</td><td>{{ row.change | thousands }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
{% endfor %}
<p class="sub">One {{ c.customer }}, with the input of both sides:
<code>ledgerbeam differences COMPARISON --customer=…</code></p>
<p class="sub">A change is the second side's amount less the first side's; a row that one side lacks
counts with its whole amount. Amounts of rows whose currency differs have no change.</p>
</body>
</html>
""")
