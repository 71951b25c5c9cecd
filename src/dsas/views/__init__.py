"""Views: a trace shown to a person, as a table, a figure, colours in the terminal, or a page to explore.

They take plain data (`explained`), so any program that has the numbers can show them; nothing here runs a model.
"""
