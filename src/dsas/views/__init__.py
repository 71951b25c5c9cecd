"""Views: a trace shown to a person, as a table, a figure, colours in the terminal, or a page to explore.

Plain data comes in (`explained`), so that whoever has the numbers can show them; nothing here runs a model.
"""
