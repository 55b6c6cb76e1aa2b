"""Engines behind one asynchronous protocol; each file here knows one of them."""
