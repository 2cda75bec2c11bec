"""Pages: one HTML file each, without scripts or other files; for light and dark, phone and screen.

figures, pictures ──▶ *.html.j2 (autoescape) ──▶ page
scores, curves ─────▶ charts (SVG) ───────────────┘
"""
