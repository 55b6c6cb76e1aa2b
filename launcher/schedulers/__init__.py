"""Where a rendered job meets a scheduler."""
