"""Readers of what tools print: pure, tolerant, and silent about what they did not see.

Each takes the output whole, as the tool wrote it, and gives facts; lines that it could not read are
left out, or handed back as ``unread``. What was cut off is missing, never shortened. Only text of
another kind is an error.
"""
