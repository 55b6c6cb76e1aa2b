"""The data plane: input files to rows, rows to prompts, answers to parts, parts to results."""
