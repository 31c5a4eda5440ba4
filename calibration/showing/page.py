"""`kvcast profile show --out`: one page that opens anywhere, without a network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final

from calibration.profile_files import load_steps, steps_beside
from calibration.profiles import Profile
from engine.atomic import replacing
from traces.errors import ConfigError

STYLE: Final = """
body { margin: 0 auto; max-width: 1100px; padding: 24px; background: #f4f6f9; color: #1b2432;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
figure { background: white; border: 1px solid #dfe3ea; border-radius: 8px; margin: 16px 0;
  padding: 16px; }
h2 { font-size: 17px; margin: 0; }
p { margin: 4px 0; } figcaption, .about { color: #5b6677; font-size: 13px; }
"""


def write_page(name_or_path: str | Path, profile: Profile, out: Path) -> Path:
    """Write the pictures of the steps beside a profile; the same steps give the same bytes.

    Raises:
        ConfigError: there are no steps beside the profile, or `out` cannot be written.
    """
    steps = load_steps(name_or_path)
    if steps is None:
        raise ConfigError(
            f"{name_or_path}: no measured steps beside it ({steps_beside(name_or_path).name});"
            " a page shows steps, so leave --out away"
        )
    from plotly.offline import get_plotlyjs

    from calibration.showing.figures import pictures

    drawn = pictures(profile, steps)
    figures = "".join(
        f"<figure><h2>{escape(one.title)}</h2><p>{escape(one.finding)}</p>"
        f'<div id="plot-{name}"></div><figcaption>{escape(one.caption)}</figcaption></figure>\n'
        for name, one in drawn.items()
    )
    plots = ",\n".join(
        f'"{name}": {str(one.figure.to_json()).replace("<", chr(92) + "u003c")}'
        for name, one in drawn.items()
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(profile.name)} · kvcast</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(profile.name)}</h1>
<p>{escape(profile.model)} on {escape(profile.device.name)}: {steps.height:,} measured steps.</p>
<p class="about">{escape(profile.provenance)}</p>
{figures}<script>{get_plotlyjs()}</script>
<script>
const OPTIONS = {{responsive: true, displaylogo: false}};
for (const [name, figure] of Object.entries({{{plots}}}))
  Plotly.newPlot("plot-" + name, figure.data, figure.layout, OPTIONS);
</script>
</body>
</html>
"""
    try:
        with replacing(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from None
    return out
