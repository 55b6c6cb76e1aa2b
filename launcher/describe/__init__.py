"""A site file out of what the commands of a cluster printed. Pure.

What no command said is absent, and asked for; where two of them disagree, neither is believed.
"""
