"""Readers of what tools print: pure, tolerant, and silent about what they did not see.

Each takes the output whole, as the tool wrote it, and gives facts and the lines that it could not
read. What was cut off is missing, never shortened. Only a table of another kind is an error.
"""
