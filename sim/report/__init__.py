"""What a run says to its reader: terminal tables, a self-contained HTML page, a timeline.

The modules here import plotly, polars and rich; importing this package imports none of them.

- `sim.report.html.write_report`: one HTML file that opens offline.
- `sim.report.figures.figures`: the page's pictures one by one, for notebooks.
- `sim.report.table.summary_table`: the terminal answer.
- `sim.report.timeline.write_timeline`: a trace for Perfetto or chrome://tracing.
"""
