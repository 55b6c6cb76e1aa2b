"""Decisions, without effects: what runs where. Kept empty so that jobs import only its types."""
