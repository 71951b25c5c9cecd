"""Reports: what was measured, shown to a person.

Data comes in as plain values; `front` draws strengths against costs, `heat` colours tokens, `page` puts text, tables
and figures into one self-contained HTML file, `masking` hides toxic words.
"""
