"""The small table that a notebook shows of a result."""

import re

from counting.analysis import analyze
from counting.cost.budget import plan_budget
from counting.records import TidyRow
from counting.records.notebook import MOST_ROWS, html_table
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3
from torch_models.fields.config import spec_from_fields


def rows_of_html(html: str) -> list[list[str]]:
    return [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr title=.*?</tr>", html)]


def test_a_budget_is_shown_as_a_table() -> None:
    html = plan_budget(5e6)._repr_html_()
    rows = rows_of_html(html)
    assert ["budget", "", "budget_usd", "5,000,000", "USD"] in rows
    assert [row[3] for row in rows if row[2] == "optimal_parameters"] == [f"{plan_budget(5e6).optimal_parameters:,}"]
    assert "<caption>BudgetPlan</caption>" in html or re.search(r"<caption>BudgetPlan: \d+ more rows", html)


def test_the_whole_model_stands_before_its_layers() -> None:
    analysis = analyze(DEEPSEEK_V3, Setup(sequence_length=8), step=False)
    rows = rows_of_html(analysis._repr_html_())
    assert len(rows) == MOST_ROWS
    assert rows[0][0] == "config"
    assert ["config", "total", "parameters", f"{analysis.parameters.total:,}", "parameter"] in rows
    assert ["config", "total", "forward_flops", f"{analysis.forward_flops:,}", "FLOP"] in rows
    left = len(analysis.to_records()) - MOST_ROWS
    assert f"<caption>Analysis: {left} more rows in to_records()</caption>" in analysis._repr_html_()


def test_markup_in_a_name_is_text() -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "<script>alert(1)</script>&")
    html = analyze(spec, Setup(sequence_length=8), step=False)._repr_html_()
    assert "<script>" not in html
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;&amp;</td>" in html
    quoted = html_table('a "kind"', [TidyRow("s", "", "q", 1.25, "u", 'says "so"')])
    assert '<tr title="says &quot;so&quot;"><td>s</td><td></td><td>q</td>' in quoted
    assert '<td style="text-align: right">1.25</td><td>u</td></tr>' in quoted


def test_zeros_are_not_shown_and_a_unit_is_text() -> None:
    rows = [TidyRow("s", "", "nothing", 0, "u", ""), TidyRow("s", "", "q", 2, "<i>&", "")]
    html = html_table("kind", rows)
    assert rows_of_html(html) == [["s", "", "q", "2", "&lt;i&gt;&amp;"]]
    assert "<caption>kind: 1 more rows in to_records()</caption>" in html
