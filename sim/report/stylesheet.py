"""The page's CSS and its few lines of script."""

from sim.report import theme

CSS = f"""
:root {{ color-scheme: light; --ink: {theme.INK}; --muted: {theme.MUTED}; --line: #dfe3ea;
  --accent: {theme.ACCENT}; --alarm: {theme.ALARM}; --page: #f4f6f9; }}
* {{ box-sizing: border-box; }}
html {{ scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: {theme.FONT}; font-size: 15px; font-variant-numeric: tabular-nums; }}
main, .top > div {{ max-width: 1200px; margin: 0 auto; padding: 0 24px; }}
.top {{ background: white; border-bottom: 1px solid var(--line); padding: 28px 0 0; }}
.brand {{ color: var(--muted); font-size: 12px; letter-spacing: .06em; text-transform: uppercase; }}
h1 {{ font-size: 28px; line-height: 1.2; font-weight: 650; margin: 4px 0 8px;
  overflow-wrap: anywhere; }}
.answer {{ font-size: 17px; max-width: 84ch; margin: 0 0 6px; }}
.setting {{ color: var(--muted); margin: 0 0 14px; font-size: 14px; }}
nav {{ display: flex; gap: 4px 20px; flex-wrap: wrap; padding: 8px 0 10px; font-size: 14px; }}
nav a {{ color: var(--accent); text-decoration: none; }}
nav a:hover {{ text-decoration: underline; }}
.cards {{ display: grid; gap: 12px; margin: 20px 0 8px;
  grid-template-columns: repeat(6, minmax(0, 1fr)); }}
.card {{ background: white; border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  min-width: 0; }}
.card .label {{ color: var(--muted); font-size: 13px; }}
.card .value {{ font-size: 24px; font-weight: 650; line-height: 1.25; white-space: nowrap; }}
.card .value small {{ font-size: 14px; font-weight: 500; color: var(--muted); }}
.card .note {{ color: var(--muted); font-size: 13px; line-height: 1.35; }}
.card .note.bad {{ color: var(--alarm); font-weight: 600; }}
.interval {{ color: var(--muted); font-size: 12px; white-space: nowrap; }}
.banner {{ border-radius: 8px; padding: 12px 16px; margin: 16px 0 0; overflow-wrap: anywhere; }}
.banner.alarm {{ background: var(--alarm); color: white; font-size: 16px; }}
.banner.alarm b {{ display: block; font-size: 18px; }}
.banner.warning {{ background: #fff4d6; border: 1px solid #e6c35c; color: #4d3a00; }}
section {{ margin: 34px 0 0; scroll-margin-top: 12px; }}
h2 {{ font-size: 20px; font-weight: 650; margin: 0 0 10px; }}
section > * + .panel, section > * + .grid, section > * + .absent,
section > * + details {{ margin-top: 12px; }}
h3 {{ font-size: 15px; font-weight: 650; margin: 0; }}
.grid {{ display: grid; gap: 12px; grid-template-columns: repeat(2, minmax(0, 1fr)); }}
.grid > .wide {{ grid-column: 1 / -1; }}
.panel {{ background: white; border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px 10px; min-width: 0; margin: 0; }}
.panel:not(:hover):not(:focus-within) .modebar {{ visibility: hidden; }}
.finding {{ margin: 2px 0 0; font-size: 14px; }}
figcaption {{ color: var(--muted); font-size: 13px; line-height: 1.4; margin: 4px 0 2px; }}
.absent {{ align-self: start; color: var(--muted); margin: 0; background: white;
  border: 1px dashed #c6ccd6; border-radius: 8px; padding: 10px 16px; font-size: 14px; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; }}
th, td {{ text-align: right; padding: 6px 10px; border-bottom: 1px solid #edf0f4;
  white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 500; border-bottom-color: #c6ccd6; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td:first-child {{ white-space: normal; overflow-wrap: anywhere; min-width: 9em; }}
tr:last-child td {{ border-bottom: 0; }}
.bar {{ display: flex; height: 14px; border-radius: 4px; overflow: hidden; gap: 1px;
  margin: 8px 0; }}
.bar i {{ display: block; min-width: 2px; }}
.key {{ display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; margin: 0; padding: 0;
  list-style: none; }}
.key i {{ display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 6px; }}
.facts {{ display: grid; gap: 0 32px; margin: 0; font-size: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }}
.key + .facts {{ margin-top: 10px; }}
.facts > div {{ display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px;
  padding: 6px 0; border-bottom: 1px solid #edf0f4; }}
.facts dt {{ color: var(--muted); }}
.facts dd {{ margin: 0; text-align: right; }}
details {{ background: white; border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; }}
summary {{ cursor: pointer; font-weight: 600; }}
pre {{ overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  margin: 10px 0 2px; }}
footer {{ color: var(--muted); font-size: 13px; padding: 26px 0 36px; }}
@media (max-width: 1100px) {{ .cards {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }} }}
@media (max-width: 760px) {{
  main, .top > div {{ padding: 0 14px; }}
  .top {{ padding-top: 18px; }}
  h1 {{ font-size: 22px; }}
  .answer {{ font-size: 16px; }}
  .cards {{ grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }}
  .card {{ padding: 10px 12px; }}
  .card .value {{ font-size: 20px; }}
  .grid {{ grid-template-columns: minmax(0, 1fr); }}
  .panel {{ padding: 12px 10px 8px; }}
  table {{ font-size: 13px; }}
  th, td {{ padding: 6px; }}
  td:first-child {{ min-width: 5.5em; }}
}}
@media print {{ body {{ background: white; }} nav {{ display: none; }}
  .panel, .card {{ break-inside: avoid; }} }}
"""

SCRIPT = """
for (const [name, figure] of Object.entries(FIGURES)) {
  const element = document.getElementById("plot-" + name);
  const narrow = element.clientWidth < 480;
  if (narrow) {
    figure.layout.margin = Object.assign({}, figure.layout.margin, {l: 44, r: 10});
    for (const trace of figure.data)
      if (trace.colorbar) trace.colorbar.title = {text: ""};
  }
  Plotly.newPlot(element, figure.data, figure.layout, {
    responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]], showSendToCloud: false,
    toImageButtonOptions: {filename: "kvcast-" + name, scale: 2},
  });
}
"""
